//! Guards that the simulator can take away, one at a time.
//!
//! A simulator that finds nothing proves nothing until it has found something. Each of these makes one guard of the protocol
//! weaker; the test of the simulator demands that every one is caught. The daemon passes `None`.

macro_rules! weaknesses {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Weakness {
            $($(#[$doc])* $name,)*
        }

        impl Weakness {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As `vmkeep-sim run --weak` takes it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

weaknesses! {
    /// T_safe counts one watchdog time-out instead of two.
    OneWatchdog = "one-watchdog",
    /// A node is sealed whatever its last renewal was.
    SealWithoutRevision = "seal-without-revision",
    /// The destination of a migration becomes owner before the source has let go.
    MoveWithoutSource = "move-without-source",
    /// A VM of a silent node is started elsewhere as soon as the node is sealed.
    PlaceWithoutProof = "place-without-proof",
    /// A crash of fenced closes the watchdog politely.
    MagicClose = "magic-close",
    /// A new candidate believes that it saw the last renewal long ago.
    FreshCandidate = "fresh-candidate",
    /// The watchdog is petted as long as fenced runs, whenever the last renewal was.
    PetByTimer = "pet-by-timer",
    /// A start is not claimed first.
    StartWithoutClaim = "start-without-claim",
    /// An order that was given to the node's last epoch is obeyed in the next one.
    OldOrders = "old-orders",
    /// A renewal does not look for a seal.
    RenewWithoutSeal = "renew-without-seal",
    /// A leader's writes do not compare the leader's key.
    DeposedLeader = "deposed-leader",
    /// A renewal counts from its answer instead of from before its question.
    CountFromAnswer = "count-from-answer",
    /// A node believes CLOCK_BOOTTIME alone.
    BoottimeOnly = "boottime-only",
    /// A node begins its next epoch before the last one is known to have ended.
    JoinWithoutProof = "join-without-proof",
    /// "Stopped" is promised while a start is still under way.
    StoppedInFlight = "stopped-in-flight",
    /// A restarted agent forgets that it may have asked libvirt for a start.
    ForgetIntent = "forget-intent",
    /// A software watchdog counts as one that outlives a pause of the whole host.
    SoftwareWatchdog = "software-watchdog",
    /// A node disarms without looking whether it owns VMs.
    DisarmOwning = "disarm-owning",
    /// A node that is not armed counts as dead at once, even if it owns VMs.
    UnarmedIsDead = "unarmed-is-dead",
    /// Nodes are sealed although more than half of them are silent.
    NoBrake = "no-brake",
    /// A node is dead as soon as the storage was asked to refuse it, whatever came of that.
    RefusalUnheard = "refusal-unheard",
    /// After an outage of the store nobody gets time to be heard again.
    NoGrace = "no-grace",
    /// A VM is started however long ago its claim was asked for.
    StartLate = "start-late",
}

impl std::str::FromStr for Weakness {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let words: Vec<&str> = Self::ALL.iter().map(|weak| weak.as_str()).collect();
        let found = Self::ALL.iter().copied().find(|weak| weak.as_str() == word);
        found.ok_or_else(|| format!("there is no guard '{word}'{}", vmkeep_types::nearest::hint(word, &words)))
    }
}
