    0.8  node3 leads
    2.8  node3 arms its watchdog
    2.8  db is placed on node3
    2.8  web is placed on node3
    5.7  web runs on node3 (generation 1)
    6.2  db runs on node3 (generation 1)
   60.0  > network node3 off
   66.2  node2 leads
   75.2  node2 seals node3: silent for 15 s
   75.8  node3 kills db, web: the store has not heard of it for too long
   86.8  the watchdog resets node3
   98.2  node3 is dead for certain (by watchdog)
   98.2  web waits: VMs of a higher priority come first
   98.2  node1 arms its watchdog
   98.2  db is placed on node1
   99.1  db runs on node1 (generation 2)
   99.1  node2 arms its watchdog
   99.1  web is placed on node2
  101.6  web runs on node2 (generation 2)
  200.0  > network node3 on
  202.3  node3 arms its watchdog
  202.3  db moves from node1 to node3
  210.5  db runs on node3 (generation 3)
  219.5  node1 disarms its watchdog

at 350 s:
  db: started on node3
  web: started on node2
  db ran again on node1 39.3 s after the last sign of life of node3
  web ran again on node2 41.8 s after the last sign of life of node3
verdict: no VM ran twice, no invariant was broken
