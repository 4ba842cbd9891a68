    0.8  node3 leads
    1.8  node1 arms its watchdog
    1.8  web is placed on node1
    4.8  web runs on node1 (generation 1)
   60.0  > vm web moved node2
   60.0  node2 arms its watchdog
   60.0  web was moved to node2 by hand: that is where it belongs now
   60.0  web is placed on node2
   60.2  web runs on node2 (generation 2)
   70.5  node1 disarms its watchdog
  100.0  > vm web migrate node3
  100.0  node3 arms its watchdog
  100.0  web moves from node2 to node3
  103.2  web runs on node3 (generation 3)
  113.2  node2 disarms its watchdog
  140.0  > vm web relocate node1
  143.4  node1 arms its watchdog
  143.4  web is placed on node1
  145.8  web runs on node1 (generation 4)
  153.8  node3 disarms its watchdog

at 200 s:
  web: started on node1
verdict: no VM ran twice, no invariant was broken
