    0.0  > vm unlucky fail-start 99
    0.0  > vm lucky fail-start 99 node1
    0.8  node3 leads
    1.8  node1 arms its watchdog
    1.8  lucky is placed on node1
    1.8  unlucky is placed on node1
    3.2  lucky fails to start on node1
    4.6  unlucky fails to start on node1
    6.1  lucky fails to start on node1
    6.1  lucky does not start on node1: it is tried on another node
    6.2  node2 arms its watchdog
    6.2  lucky is placed on node2
    9.0  lucky runs on node2 (generation 2)
    9.7  unlucky fails to start on node1
    9.7  unlucky does not start on node1: it is tried on another node
    9.8  node3 arms its watchdog
    9.8  unlucky is placed on node3
   11.9  unlucky fails to start on node3
   15.4  unlucky fails to start on node3
   15.4  unlucky is in error: it does not start on node3, and no other attempt is allowed
   20.5  node1 disarms its watchdog
  120.0  > vm unlucky fail-start 0
  120.0  > vm unlucky disabled
  140.0  > vm unlucky started
  140.6  unlucky runs on node3 (generation 2)

at 200 s:
  lucky: started on node2
  unlucky: started on node3
verdict: no VM ran twice, no invariant was broken
