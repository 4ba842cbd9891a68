    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  web is placed on node2
    3.6  web runs on node2 (generation 1)
   60.0  > pause node2 host 5
  100.0  > pause node2 host 120
  107.2  the watchdog resets node2
  113.8  node3 seals node2: silent for 15 s
  136.8  node2 is dead for certain (by watchdog)
  136.8  node1 arms its watchdog
  136.8  web is placed on node1
  138.1  web runs on node1 (generation 2)

at 300 s:
  web: started on node1
  web ran again on node1 39.9 s after the last sign of life of node2
verdict: no VM ran twice, no invariant was broken
