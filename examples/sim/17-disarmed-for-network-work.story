    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    1.8  b is placed on node2
    1.8  a is placed on node1
    4.1  b runs on node2 (generation 1)
    4.6  a runs on node1 (generation 1)
   60.0  > disarm freeze
   60.0  node2 disarms its watchdog
   60.0  node1 disarms its watchdog
   90.0  > network node1 off
   90.0  > network node2 off
   90.0  > network node3 off
   94.8  2 of 3 nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`
  150.0  > network node1 on
  150.0  > network node2 on
  150.0  > network node3 on
  150.2  node2 leads
  151.2  3 of 3 nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`
  180.0  > arm
  180.0  node2 arms its watchdog
  180.0  node1 arms its watchdog

at 260 s:
  a: started on node1
  b: started on node2
verdict: no VM ran twice, no invariant was broken
