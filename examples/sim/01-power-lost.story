    0.8  node3 leads
    1.8  node1 arms its watchdog
    1.8  other is placed on node1
    2.8  node3 arms its watchdog
    2.8  db is placed on node3
    2.8  web is placed on node3
    2.8  batch is placed on node3
    3.3  other runs on node1 (generation 1)
    4.7  batch runs on node3 (generation 1)
    4.7  db runs on node3 (generation 1)
    5.6  web runs on node3 (generation 1)
   60.0  > power node3 off
   66.2  node2 leads
   75.2  node2 seals node3: silent for 15 s
   98.2  node3 is dead for certain (by watchdog)
   98.2  web waits: VMs of a higher priority come first
   98.2  batch waits: VMs of a higher priority come first
   98.2  node2 arms its watchdog
   98.2  db is placed on node2
  100.9  db runs on node2 (generation 2)
  100.9  web is placed on node1
  101.5  web runs on node1 (generation 2)
  101.5  batch is placed on node2
  103.5  batch runs on node2 (generation 2)

at 200 s:
  batch: started on node2
  db: started on node2
  other: started on node1
  web: started on node1
  db ran again on node2 41.1 s after the last sign of life of node3
  web ran again on node1 41.7 s after the last sign of life of node3
  batch ran again on node2 43.7 s after the last sign of life of node3
verdict: no VM ran twice, no invariant was broken
