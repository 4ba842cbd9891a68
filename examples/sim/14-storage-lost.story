    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  web is placed on node2
    3.6  web runs on node2 (generation 1)
   60.0  > storage node2 off
   90.0  > vm late add node2
   90.0  node1 arms its watchdog
   90.0  late is placed on node1
   92.9  late runs on node1 (generation 1)
  150.0  > storage node2 on

at 240 s:
  late: started on node1
  web: started on node2
verdict: no VM ran twice, no invariant was broken
