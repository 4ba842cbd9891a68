    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    1.8  b is placed on node2
    1.8  a is placed on node1
    4.1  b runs on node2 (generation 1)
    4.6  a runs on node1 (generation 1)
   60.0  > network node1 off
   60.0  etcd elects a new leader and answers nobody for 2004 ms
   73.5  node1 kills a: the store has not heard of it for too long
   73.8  node3 seals node1: silent for 15 s
   73.8  node3 has the storage refuse what node1 writes
   74.7  the storage refuses what node1 writes
   74.7  node1 is dead for certain (by storage)
   74.7  node3 arms its watchdog
   74.8  a is placed on node3
   76.9  a runs on node3 (generation 2)
   84.5  the watchdog resets node1
  120.0  > network node1 on

at 240 s:
  a: started on node3
  b: started on node2
  a ran again on node3 18.4 s after the last sign of life of node1
verdict: no VM ran twice, no invariant was broken
