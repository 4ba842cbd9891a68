    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  web is placed on node2
    3.6  web runs on node2 (generation 1)
   60.0  > pause node2 fenced 60
   67.2  the watchdog resets node2
   80.8  node3 seals node2: silent for 15 s
  103.8  node2 is dead for certain (by watchdog)
  103.8  node1 arms its watchdog
  103.8  web is placed on node1
  105.1  web runs on node1 (generation 2)

at 260 s:
  web: started on node1
  web ran again on node1 39.9 s after the last sign of life of node2
verdict: no VM ran twice, no invariant was broken
