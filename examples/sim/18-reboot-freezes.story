    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    1.8  b is placed on node2
    1.8  a is placed on node1
    4.1  b runs on node2 (generation 1)
    4.6  a runs on node1 (generation 1)
   60.0  > reboot node1
   64.0  a waits: it stays with node1, which is away
   64.0  node1 reboots
   94.7  node1 arms its watchdog
   94.7  a is placed on node1
   97.2  a runs on node1 (generation 2)
  180.0  > shutdown node2
  182.8  node3 arms its watchdog
  182.8  b is placed on node3
  182.8  node2 powers off
  185.4  b runs on node3 (generation 2)

at 300 s:
  a: started on node1
  b: started on node3
verdict: no VM ran twice, no invariant was broken
