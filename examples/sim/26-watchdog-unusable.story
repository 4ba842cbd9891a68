    0.8  node3 leads
    1.8  node1 has no watchdog to arm
    1.8  node2 has no watchdog to arm
    1.8  db is placed on node2
    1.8  web waits: VMs of a higher priority come first
    3.0  db runs on node2 (generation 1)
    3.0  node3 arms its watchdog
    3.1  web is placed on node3
    5.2  web runs on node3 (generation 1)
   60.0  > power node2 off
   74.8  node3 seals node2: silent for 15 s
   74.8  node3 has the power of node2 cut
   76.8  node2 is dead for certain (by stonith)
   76.8  db is placed on node3
   78.0  db runs on node3 (generation 2)

at 140 s:
  db: started on node3
  web: started on node3
  db ran again on node3 18.8 s after the last sign of life of node2
verdict: no VM ran twice, no invariant was broken
