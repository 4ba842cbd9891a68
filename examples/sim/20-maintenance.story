    0.8  node3 leads
    1.8  node1 arms its watchdog
    1.8  a is placed on node1
    1.8  b is placed on node1
    1.8  off is placed on node1
    4.4  b runs on node1 (generation 1)
    4.9  a runs on node1 (generation 1)
   60.0  > maintenance node1 on
   60.0  node2 arms its watchdog
   60.0  a moves from node1 to node2
   60.0  b moves from node1 to node2
   60.0  node3 arms its watchdog
   60.0  off is placed on node3
   64.9  b runs on node2 (generation 2)
   65.5  a runs on node2 (generation 2)
   75.5  node1 disarms its watchdog
  120.0  > maintenance node1 off
  120.0  node1 arms its watchdog
  120.0  a moves from node2 to node1
  125.1  b moves from node2 to node1
  125.4  a runs on node1 (generation 3)
  130.0  b runs on node1 (generation 3)
  140.2  node2 disarms its watchdog

at 220 s:
  a: started on node1
  b: started on node1
  off: stopped
verdict: no VM ran twice, no invariant was broken
