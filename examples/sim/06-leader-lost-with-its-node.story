    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    1.8  b is placed on node2
    1.8  a is placed on node1
    2.8  node3 arms its watchdog
    2.8  c is placed on node3
    3.2  a runs on node1 (generation 1)
    3.8  b runs on node2 (generation 1)
    4.4  c runs on node3 (generation 1)
   60.0  > power node1 off
   60.0  etcd elects a new leader and answers nobody for 1945 ms
   73.8  node3 seals node1: silent for 15 s
   96.8  node1 is dead for certain (by watchdog)
   96.8  a is placed on node2
   97.8  a runs on node2 (generation 2)

at 200 s:
  a: started on node2
  b: started on node2
  c: started on node3
  a ran again on node2 39.3 s after the last sign of life of node1
verdict: no VM ran twice, no invariant was broken
