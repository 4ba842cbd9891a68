    0.8  node3 leads
    2.8  node3 arms its watchdog
    2.8  db is placed on node3
    2.8  web is placed on node3
    5.7  web runs on node3 (generation 1)
    6.2  db runs on node3 (generation 1)
   60.0  > power node3 off
   66.2  node2 leads
   75.2  node2 seals node3: silent for 15 s
   75.2  node2 has the power of node3 cut
   80.1  node3 is dead for certain (by stonith)
   80.1  web waits: VMs of a higher priority come first
   80.1  node1 arms its watchdog
   80.1  db is placed on node1
   82.5  db runs on node1 (generation 2)
   82.5  node2 arms its watchdog
   82.6  web is placed on node2
   83.7  web runs on node2 (generation 2)

at 200 s:
  db: started on node1
  web: started on node2
  db ran again on node1 22.7 s after the last sign of life of node3
  web ran again on node2 23.9 s after the last sign of life of node3
verdict: no VM ran twice, no invariant was broken
