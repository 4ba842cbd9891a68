    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  web is placed on node2
    3.6  web runs on node2 (generation 1)
   60.0  > pause node2 agent 100
   74.2  node2 kills web: the store has not heard of it for too long
   74.8  node3 seals node2: silent for 15 s
   85.2  the watchdog resets node2
   97.8  node2 is dead for certain (by watchdog)
   97.8  node1 arms its watchdog
   97.8  web is placed on node1
   99.5  web runs on node1 (generation 2)

at 260 s:
  web: started on node1
  web ran again on node1 40.3 s after the last sign of life of node2
verdict: no VM ran twice, no invariant was broken
