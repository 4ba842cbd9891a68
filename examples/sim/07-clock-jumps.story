    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  web is placed on node2
    3.6  web runs on node2 (generation 1)
   60.0  > clock node2 step 3600
   90.0  > clock node1 step -3600

at 180 s:
  web: started on node2
verdict: no VM ran twice, no invariant was broken
