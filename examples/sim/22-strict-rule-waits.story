    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    1.8  b is placed on node2
    1.8  c is placed on node2
    1.8  a is placed on node1
    2.2  a is placed on node1
    3.3  b runs on node2 (generation 1)
    3.7  c runs on node2 (generation 1)
    4.6  a runs on node1 (generation 1)
   60.0  > power node2 off
   74.8  node3 seals node2: silent for 15 s
   97.8  node2 is dead for certain (by watchdog)
   97.8  b waits: no node can take it (node1: a is there, and a strict rule keeps them apart; node2: it is dead; node3: a strict rule keeps it on other nodes)
   98.8  node3 arms its watchdog
   98.8  c is placed on node3
  100.4  c runs on node3 (generation 2)
  180.0  > power node2 on
  202.6  b waits: no node can take it (node1: a is there, and a strict rule keeps them apart; node2: it does not answer; node3: a strict rule keeps it on other nodes)
  203.6  node2 arms its watchdog
  203.6  b is placed on node2
  206.2  b runs on node2 (generation 2)

at 300 s:
  a: started on node1
  b: started on node2
  c: started on node3
  c ran again on node3 41.2 s after the last sign of life of node2
  b ran again on node2 147.0 s after the last sign of life of node2
verdict: no VM ran twice, no invariant was broken
