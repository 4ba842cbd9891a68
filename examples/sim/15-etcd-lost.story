    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    1.8  b is placed on node2
    1.8  a is placed on node1
    2.8  node3 arms its watchdog
    2.8  c is placed on node3
    3.2  a runs on node1 (generation 1)
    3.8  b runs on node2 (generation 1)
    4.4  c runs on node3 (generation 1)
   60.0  > etcd off
   73.5  node1 kills a: the store has not heard of it for too long
   74.2  node2 kills b: the store has not heard of it for too long
   75.8  node3 kills c: the store has not heard of it for too long
   84.5  the watchdog resets node1
   85.2  the watchdog resets node2
   86.8  the watchdog resets node3
  120.0  > etcd on
  122.5  node1 leads
  128.4  node1 seals node1: silent for 6 s
  128.4  node1 seals node2: silent for 6 s
  128.4  node1 seals node3: silent for 6 s
  160.4  node2 is dead for certain (by watchdog)
  160.4  node1 is dead for certain (by watchdog)
  160.4  node3 is dead for certain (by watchdog)
  160.4  a waits: no node can take it (node1: it is dead; node2: it is being fenced; node3: it is being fenced)
  160.4  b waits: no node can take it (node1: it is dead; node2: it is dead; node3: it is being fenced)
  160.4  c waits: no node can take it (node1: it is dead; node2: it is dead; node3: it is dead)
  160.5  2 of 3 nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`
  160.6  node2 arms its watchdog
  161.0  node3 arms its watchdog
  161.5  node1 arms its watchdog
  161.5  a is placed on node1
  161.5  b is placed on node2
  161.5  c is placed on node3
  162.6  c runs on node3 (generation 2)
  163.0  b runs on node2 (generation 2)
  164.9  a runs on node1 (generation 2)

at 300 s:
  a: started on node1
  b: started on node2
  c: started on node3
  c ran again on node3 102.8 s after the last sign of life of node3
  b ran again on node2 103.8 s after the last sign of life of node2
  a ran again on node1 106.4 s after the last sign of life of node1
verdict: no VM ran twice, no invariant was broken
