    0.8  node3 leads
    1.8  node2 arms its watchdog
    1.8  node1 arms its watchdog
    2.8  node3 arms its watchdog
    2.8  web is placed on node2
    5.2  web runs on node2 (generation 1)
   13.5  node1 disarms its watchdog
   14.8  node3 disarms its watchdog
   60.0  > pause node2 host 120
   74.8  node3 seals node2: silent for 15 s
   74.8  node2 has a software watchdog, which proves nothing while the whole host stands still: only STONITH, the storage or a person can say that it is dead
  180.2  node2 kills web: the store has not heard of it for too long
  180.2  node2 learns that it is sealed: it kills its VMs and lets the watchdog bite
  187.2  the watchdog resets node2
  260.0  > confirm-dead node2
  260.0  node2 is dead for certain (by operator)
  260.0  node1 arms its watchdog
  260.7  node2 arms its watchdog
  260.7  node3 arms its watchdog
  260.8  web is placed on node1
  263.1  web runs on node1 (generation 2)
  271.7  node2 disarms its watchdog
  272.8  node3 disarms its watchdog

at 330 s:
  web: started on node1
  web ran again on node1 203.9 s after the last sign of life of node2
verdict: no VM ran twice, no invariant was broken
