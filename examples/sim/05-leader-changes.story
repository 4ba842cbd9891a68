    0.8  node3 leads
    1.8  node1 arms its watchdog
    1.8  node2 arms its watchdog
    1.8  web is placed on node1
    1.8  db is placed on node2
    4.1  db runs on node2 (generation 1)
    4.6  web runs on node1 (generation 1)
   60.0  > candidate node1 stop
   90.0  > candidate node1 start
   90.0  > candidate node2 stop
  120.0  > candidate node2 start
  120.0  > candidate node3 stop
  126.0  node1 leads
  150.0  > candidate node3 start
  150.0  > etcd elect
  150.0  etcd elects a new leader and answers nobody for 1645 ms

at 240 s:
  db: started on node2
  web: started on node1
verdict: no VM ran twice, no invariant was broken
