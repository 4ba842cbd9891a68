    0.8  node3 leads
    2.8  node3 arms its watchdog
    2.8  db is placed on node3
    2.8  web is placed on node3
    5.1  db runs on node3 (generation 1)
    5.4  web runs on node3 (generation 1)
   60.0  > power node3 off
   66.2  node2 leads
   75.2  node2 seals node3: silent for 15 s
   75.2  node2 has the power of node3 cut
   79.4  node3 is dead for certain (by stonith)
   79.4  web waits: VMs of a higher priority come first
   79.4  node1 arms its watchdog
   79.4  db is placed on node1
   80.2  db runs on node1 (generation 2)
   80.2  node2 arms its watchdog
   80.2  web is placed on node2
   83.2  web runs on node2 (generation 2)

at 200 s:
  db: started on node1
  web: started on node2
  db ran again on node1 20.4 s after the last sign of life of node3
  web ran again on node2 23.4 s after the last sign of life of node3
verdict: no VM ran twice, no invariant was broken
