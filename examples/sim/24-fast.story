    1.2  node2 leads
    1.5  node2 arms its watchdog
    1.5  node3 arms its watchdog
    1.5  a is placed on node2
    1.5  b is placed on node3
    3.4  b runs on node3 (generation 1)
    3.7  a runs on node2 (generation 1)
   60.0  > power node3 off
   62.9  node2 seals node3: silent for 4 s
   62.9  node2 has the power of node3 cut
   66.1  node3 is dead for certain (by stonith)
   66.1  node1 arms its watchdog
   66.1  b is placed on node1
   68.7  b runs on node1 (generation 2)
  120.0  > power node3 on
  200.0  > power node2 off
  204.4  node3 leads
  204.6  node3 seals node2: silent for 4 s
  216.9  node2 is dead for certain (by watchdog)
  216.9  node3 arms its watchdog
  216.9  a is placed on node3
  218.8  a runs on node3 (generation 2)

at 280 s:
  a: started on node3
  b: started on node1
  b ran again on node1 9.9 s after the last sign of life of node3
  a ran again on node3 19.1 s after the last sign of life of node2
verdict: no VM ran twice, no invariant was broken
