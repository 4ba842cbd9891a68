    0.8  node3 leads
    2.8  node3 arms its watchdog
    2.8  web is placed on node3
    4.5  web runs on node3 (generation 1)
   60.0  > store node3 fail
   65.8  2 of 3 nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`
   78.2  node2 leads
   90.0  > vm web stopped
  150.0  > store node3 work

at 200 s:
  web: stopped
verdict: no VM ran twice, no invariant was broken
