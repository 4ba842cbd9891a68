    0.8  node3 leads
    1.8  node1 arms its watchdog
    1.8  a is placed on node1
    1.8  b is placed on node1
    3.2  a runs on node1 (generation 1)
    4.6  b runs on node1 (generation 1)
   50.0  > vm b fail-migrate 1
   60.0  > shutdown node1
   60.0  node2 arms its watchdog
   60.0  a moves from node1 to node2
   60.0  b moves from node1 to node2
   60.0  node3 arms its watchdog
   65.3  b fails to migrate from node1
   65.3  a runs on node2 (generation 2)
   65.3  b stays on node1: its migration to node2 is off, it failed
   67.7  b is placed on node3
   67.7  node1 powers off
   68.0  etcd elects a new leader and answers nobody for 1686 ms
   68.8  b runs on node3 (generation 2)

at 200 s:
  a: started on node2
  b: started on node3
verdict: no VM ran twice, no invariant was broken
