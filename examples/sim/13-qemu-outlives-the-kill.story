    0.8  node3 leads
    2.8  node3 arms its watchdog
    2.8  web is placed on node3
    4.5  web runs on node3 (generation 1)
   60.0  > qemu web stick
   60.0  > network node3 off
   66.2  node2 leads
   75.2  node2 seals node3: silent for 15 s
   86.8  the watchdog resets node3
   98.2  node3 is dead for certain (by watchdog)
   98.2  node1 arms its watchdog
   98.2  web is placed on node1
  100.6  web runs on node1 (generation 2)

at 200 s:
  web: started on node1
  web ran again on node1 40.8 s after the last sign of life of node3
verdict: no VM ran twice, no invariant was broken
