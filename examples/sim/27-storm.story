    0.2  node2 leads
    2.1  node7 arms its watchdog
    2.1  a is placed on node7
    4.2  a runs on node7 (generation 1)
   60.0  > pause node7 agent 11
   60.0  > pause node8 agent 11
   60.0  > pause node9 agent 11
   60.0  > pause node10 agent 11
   60.0  > pause node11 agent 11
   60.0  > pause node12 agent 11
   66.2  6 of 12 nodes are silent at once: those that answer pings are not fenced
  160.0  > network node5 off
  160.0  > network node6 off
  160.0  > network node7 off
  160.0  > network node8 off
  160.0  > network node9 off
  160.0  > network node10 off
  160.0  > network node11 off
  160.0  > network node12 off
  165.2  6 of 12 nodes are silent at once: those that answer pings are not fenced
  166.2  8 of 12 nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`
  172.0  > network node5 on
  172.0  > network node6 on
  172.0  > network node7 on
  172.0  > network node8 on
  172.0  > network node9 on
  172.0  > network node10 on
  172.0  > network node11 on
  172.0  > network node12 on
  172.2  6 of 12 nodes are silent at once: those that answer pings are not fenced

at 300 s:
  a: started on node7
verdict: no VM ran twice, no invariant was broken
