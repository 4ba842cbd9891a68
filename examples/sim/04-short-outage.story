    0.8  node3 leads
    2.8  node3 arms its watchdog
    2.8  web is placed on node3
    4.5  web runs on node3 (generation 1)
   60.0  > network node3 off
   66.2  node2 leads
   70.0  > network node3 on

at 200 s:
  web: started on node3
verdict: no VM ran twice, no invariant was broken
