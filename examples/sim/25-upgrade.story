    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    1.8  b is placed on node2
    1.8  a is placed on node1
    4.1  b runs on node2 (generation 1)
    4.6  a runs on node1 (generation 1)
   60.0  > upgrade node1
   75.0  > upgrade node2
   90.0  > upgrade node3

at 150 s:
  a: started on node1
  b: started on node2
verdict: no VM ran twice, no invariant was broken
