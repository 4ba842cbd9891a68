//! One node after another for one VM after another, and what must hold whatever comes.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use vmkeep_types::host::{KvmState, NodeHealth, NumaNode};
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::node::{Closure, Cordon, NodeRecord};
use vmkeep_types::units::ByteCount;

use super::need::{Accel, Counts, Guest, Home};
use super::testkit::{Dice, facts, fleet, guest, name, put, record};
use super::{Choice, Fleet, capacity, choose, explain, leave, refuse, rules, simulate, words};

/// Every node and what is said of it, the choice first.
fn check(fleet: &Fleet, guest: &Guest, wanted: Expect) {
    let mut told = String::new();
    for verdict in explain(fleet, guest) {
        let words = verdict.fits.map_or_else(|refusal| format!("no: {refusal}"), |score| format!("yes: {score}"));
        writeln!(told, "{}: {words}", verdict.node).expect("a string takes all");
    }
    wanted.assert_eq(&told);
    fleet.check().expect("sums and indexes are true");
}

#[test]
fn the_emptier_node_wins_and_ties_go_by_name() {
    let mut fleet = fleet(&[("a", 4, 8), ("b", 4, 8)]);
    check(
        &fleet,
        &guest(1, "web1", json!({})),
        expect![[r#"
        a: yes: 12.5 % used then
        b: yes: 12.5 % used then
    "#]],
    );
    put(&mut fleet, guest(1, "web1", json!({"memory": "4G"})), "a");
    check(
        &fleet,
        &guest(2, "web2", json!({})),
        expect![[r#"
        b: yes: 12.5 % used then
        a: yes: 62.5 % used then
    "#]],
    );
    let mut bound = guest(2, "web2", json!({}));
    bound.need.home = Home::Only(name("a"));
    check(
        &fleet,
        &bound,
        expect![[r#"
        a: yes: 62.5 % used then, its volumes are here
        b: no: its volumes are on another node
    "#]],
    );
}

#[test]
fn a_host_alone_has_no_limits_but_its_size() {
    let mut fleet = fleet(&[("a", 2, 4)]);
    for n in 0..20 {
        put(&mut fleet, guest(n, &format!("w{n}"), json!({"cpus": 2})), "a");
    }
    assert_eq!(choose(&fleet, &guest(99, "more", json!({"memory": "4G"}))), Choice::Node(name("a")));
    check(
        &fleet,
        &guest(99, "more", json!({"memory": "5G"})),
        expect![[r#"
        a: no: needs 5G of memory, the host has 4G
    "#]],
    );
    fleet.set_node(facts("a", 2, 4), record("a", json!({"overcommit": {"memory": 2}, "reserve": {"memory": "1G"}})));
    check(
        &fleet,
        &guest(99, "more", json!({})),
        expect![[r#"
        a: no: needs 1G of memory, 0B of 6G are free
    "#]],
    );
}

#[test]
fn each_filter_says_why() {
    let mut fleet = fleet(&[("full", 4, 8)]);
    put(&mut fleet, guest(50, "big", json!({"memory": "7G", "devices": {"pci": ["0000:03:00.0"]}})), "full");
    let mut add = |node: &str, change: &dyn Fn(&mut vmkeep_types::host::NodeFacts), fields: Value| {
        let mut facts = facts(node, 4, 64);
        change(&mut facts);
        fleet.set_node(facts, record(node, fields));
    };
    let nothing = |_: &mut vmkeep_types::host::NodeFacts| {};
    let disk = json!({"labels": {"disk": "ssd"}});
    add("dead", &|f| f.hypervisor_up = false, disk.clone());
    add("gpu", &nothing, json!({"labels": {"disk": "ssd"}, "taints": [{"key": "gpu", "value": "a100"}]}));
    add("slow", &nothing, json!({"labels": {"disk": "hdd"}}));
    add("bare", &nothing, json!({}));
    add("arm", &|f| f.offers.arch = "aarch64".into(), disk.clone());
    add("old", &|f| f.offers.cpu_models = ["Nehalem".to_owned()].into(), disk.clone());
    add("tcg", &|f| f.kvm = KvmState::Unusable { why: "no vmx".into() }, disk.clone());
    add("aged", &|f| f.offers.machines = ["pc-q35-7.2".to_owned()].into(), disk.clone());
    let looked = |f: &mut vmkeep_types::host::NodeFacts, bridge: &str| {
        (f.offers.arch, f.offers.bridges) = ("x86_64".into(), [bridge.to_owned()].into());
    };
    add("apart", &|f| looked(f, "br1"), disk.clone());
    add("bridgeless", &|f| f.offers.arch = "x86_64".into(), disk.clone());
    add(
        "nodev",
        &|f| {
            looked(f, "br0");
            f.offers.pci = ["0000:04:00.0".to_owned()].into();
        },
        disk.clone(),
    );
    add("small", &|f| f.memory = ByteCount::from_gib(1), disk.clone());
    add("cores", &|f| f.cpus = 1, disk.clone());
    let closed = NodeRecord {
        cordon: Some(Cordon { by: "alice".into(), at: jiff::Timestamp::UNIX_EPOCH, why: "new disks".into(), closure: Closure::Cordon }),
        ..record("shut", disk.clone())
    };
    fleet.set_node(facts("shut", 4, 64), closed);
    fleet.set_node(facts("full", 4, 8), record("full", disk.clone()));
    let mut wish = guest(
        1,
        "db",
        json!({
            "cpus": 9, "memory": "2G", "cpu": {"model": "EPYC"}, "devices": {"pci": ["0000:03:00.0"]}, "placement": {"node_selector": {"disk": "ssd"}}
        }),
    );
    wish.need.accel = Accel::Kvm;
    wish.need.machine = Some("pc-q35-10.0".into());
    wish.need.bridges = vec![(name("lan"), "br0".to_owned())];
    check(
        &fleet,
        &wish,
        expect![[r#"
        aged: no: its QEMU has no machine type pc-q35-10.0
        apart: no: network 'lan' is not reachable: there is no bridge br0
        arm: no: its CPUs are aarch64, the machine is x86_64
        bare: no: node_selector wants disk=ssd, and it has no label disk
        bridgeless: no: network 'lan' is not reachable: there is no bridge br0
        cores: no: needs 9 vCPUs, the host has 1 CPUs (8 vCPUs each at most)
        dead: no: libvirt does not answer
        full: no: PCI device 0000:03:00.0 is VM 'big''s
        gpu: no: it has the taint gpu=a100, which the VM does not tolerate
        nodev: no: it has no PCI device 0000:03:00.0
        old: no: guests cannot have the CPU EPYC here
        shut: no: it is cordoned (by alice: new disks)
        slow: no: node_selector wants disk=ssd, and it has disk=hdd
        small: no: needs 2G of memory, the host has 1G
        tcg: no: the VM runs with hardware virtualisation, and it has none (no vmx)
    "#]],
    );
    let tolerant = guest(2, "ml", json!({"placement": {"node_selector": {"node": "gpu"}, "tolerations": [{"key": "gpu"}]}}));
    assert_eq!(choose(&fleet, &tolerant), Choice::Node(name("gpu")));
    let Choice::Blocked(why) = choose(&fleet, &wish) else { panic!("it fits nowhere") };
    assert!(words(&why).ends_with("and 7 more nodes; `vmkeep vm explain` tells them all)"), "{}", words(&why));
    let Choice::Blocked(why) = choose(&Fleet::default(), &wish) else { panic!("there is no node") };
    assert_eq!(words(&why), "no node has joined yet");
}

#[test]
fn overcommit_reserves_and_huge_pages_count() {
    let mut fleet = fleet(&[("tight", 4, 64), ("kept", 4, 64), ("plain", 4, 64), ("huge", 4, 64), ("unasked", 4, 64)]);
    fleet.set_node(facts("tight", 4, 64), record("tight", json!({"overcommit": {"cpu": "1.0"}})));
    fleet.set_node(facts("kept", 4, 64), record("kept", json!({"overcommit": {"cpu": "2.0"}, "reserve": {"cpus": 1}})));
    for (node, gib) in [("plain", 0), ("huge", 4)] {
        let mut looked = facts(node, 4, 64);
        (looked.offers.arch, looked.offers.hugepages) = ("x86_64".into(), ByteCount::from_gib(gib));
        fleet.set_node(looked, record(node, json!({})));
    }
    put(&mut fleet, guest(9, "old", json!({"memory": {"size": "3G", "hugepages": true}})), "huge");
    check(
        &fleet,
        &guest(1, "db", json!({"cpus": 7, "memory": {"size": "2G", "hugepages": true}})),
        expect![[r#"
            unasked: yes: 21.8 % used then
            huge: no: needs 2G of huge pages, 1G are free
            kept: no: needs 7 vCPUs, 6 of 6 are free
            plain: no: needs 2G of huge pages, 0B are free
            tight: no: needs 7 vCPUs, 4 of 4 are free
        "#]],
    );
}

#[test]
fn rules_between_vms_hold_both_ways() {
    let mut fleet = fleet(&[("a", 8, 64), ("b", 8, 64), ("c", 8, 64)]);
    for (node, rack) in [("a", "r1"), ("b", "r1"), ("c", "r2")] {
        fleet.set_node(facts(node, 8, 64), record(node, json!({"failure_domain": rack})));
    }
    let web = |n: u64| {
        guest(
            n,
            &format!("web{n}"),
            json!({"labels": {"app": "web"}, "placement": {"anti_affinity": [{"labels": {"app": "web"}, "strict": true}]}}),
        )
    };
    put(&mut fleet, web(1), "a");
    check(
        &fleet,
        &web(2),
        expect![[r#"
        c: yes: 1.5 % used then
        b: yes: 1.5 % used then, beside VMs to be apart from in its failure domain
        a: no: a VM with app=web is there, and a strict rule keeps them apart
    "#]],
    );
    // A plain VM of the same label has no rule of its own, and is kept away by the other's.
    check(
        &fleet,
        &guest(9, "plain", json!({"labels": {"app": "web"}})),
        expect![[r#"
        c: yes: 1.5 % used then
        b: yes: 1.5 % used then, beside VMs to be apart from in its failure domain
        a: no: a VM that wants to be apart from a VM with app=web is there, and a strict rule keeps them apart
    "#]],
    );
    let racks = guest(3, "db2", json!({"placement": {"anti_affinity": [{"vm": "web1", "strict": true, "within": "failure-domain"}]}}));
    check(
        &fleet,
        &racks,
        expect![[r#"
        c: yes: 1.5 % used then
        a: no: VM 'web1' is there, and a strict rule keeps them apart
        b: no: VM 'web1' is in its failure domain r1, and a strict rule keeps them apart
    "#]],
    );
    let together =
        guest(4, "cache", json!({"placement": {"affinity": [{"vm": "web1", "strict": true}, {"vm": "not-there", "strict": true}]}}));
    check(
        &fleet,
        &together,
        expect![[r#"
        a: yes: 3.1 % used then
        b: no: VM 'web1' is elsewhere, and a strict rule keeps them together
        c: no: VM 'web1' is elsewhere, and a strict rule keeps them together
    "#]],
    );
    put(&mut fleet, guest(5, "lonely", json!({"placement": {"affinity": [{"vm": "friend", "strict": true}]}})), "c");
    check(
        &fleet,
        &guest(6, "friend", json!({})),
        expect![[r#"
        c: yes: 3.1 % used then
        a: no: a VM that wants to be with VM 'friend' is elsewhere, and a strict rule keeps them together
        b: no: a VM that wants to be with VM 'friend' is elsewhere, and a strict rule keeps them together
    "#]],
    );
    let rather = guest(7, "rather", json!({"placement": {"anti_affinity": [{"labels": {"app": "web"}}], "affinity": [{"vm": "lonely"}]}}));
    check(
        &fleet,
        &rather,
        expect![[r#"
        c: yes: 3.1 % used then
        b: yes: 1.5 % used then, against 1 preference, beside VMs to be apart from in its failure domain
        a: yes: 3.1 % used then, against 2 preferences, beside VMs to be apart from in its failure domain
    "#]],
    );
}

#[test]
fn preferences_go_before_room() {
    let mut fleet = fleet(&[("a", 8, 64), ("b", 8, 64)]);
    fleet.set_node(facts("b", 8, 64), record("b", json!({"taints": [{"key": "old", "effect": "avoid"}]})));
    put(&mut fleet, guest(1, "big", json!({"memory": "60G"})), "a");
    assert_eq!(choose(&fleet, &guest(2, "x", json!({}))), Choice::Node(name("a")));
    let mut slow = facts("a", 8, 64);
    slow.kvm = KvmState::Unusable { why: "no".into() };
    fleet.set_node(slow, NodeRecord::named(name("a")));
    assert_eq!(choose(&fleet, &guest(2, "x", json!({}))), Choice::Node(name("b")), "an emulated CPU is worse than a taint to be avoided");
}

#[test]
fn near_memory_decides_among_equals() {
    let mut fleet = fleet(&[("a", 8, 64), ("b", 8, 64)]);
    let mut small = facts("a", 8, 64);
    small.offers.numa = (0..4).map(|id| NumaNode { id, cpus: 2, memory: ByteCount::from_gib(16) }).collect();
    fleet.set_node(small, NodeRecord::named(name("a")));
    assert_eq!(choose(&fleet, &guest(1, "x", json!({"cpus": 4}))), Choice::Node(name("b")));
    assert_eq!(choose(&fleet, &guest(1, "x", json!({"cpus": 2}))), Choice::Node(name("a")));
}

#[test]
fn a_vm_that_is_kept_off_takes_no_room() {
    let mut fleet = fleet(&[("a", 4, 4), ("b", 4, 1)]);
    let off = Guest { counts: Counts::No, ..guest(1, "off", json!({"memory": "3G"})) };
    put(&mut fleet, off.clone(), "a");
    assert_eq!(choose(&fleet, &guest(2, "x", json!({"memory": "3G"}))), Choice::Node(name("a")));
    fleet.set_guest(Guest { counts: Counts::Yes, ..off });
    assert!(matches!(choose(&fleet, &guest(2, "x", json!({"memory": "3G"}))), Choice::Blocked(_)));
    fleet.check().expect("the sums are true");
}

#[test]
fn capacity_counts_failures() {
    let told = |fleet: &Fleet| {
        let c = capacity::capacity(fleet);
        format!(
            "may fail: {}, breaks: {:?}, largest: {:?}",
            c.may_fail,
            c.breaks.map(|b| (b.failed, b.left_over)),
            c.largest.map(|l| (l.node, l.memory.human(), l.vcpus))
        )
    };
    let mut fleet = fleet(&[("a", 8, 16), ("b", 8, 16), ("c", 8, 16)]);
    expect![[r#"may fail: 2, breaks: None, largest: Some((Name("a"), "16G", 64))"#]].assert_eq(&told(&fleet));
    for (n, node) in [(1, "a"), (2, "b"), (3, "c")] {
        put(&mut fleet, guest(n, &format!("v{n}"), json!({"memory": "8G"})), node);
    }
    expect![[r#"may fail: 1, breaks: Some(([Name("a"), Name("b")], [Name("v2")])), largest: Some((Name("a"), "8G", 63))"#]]
        .assert_eq(&told(&fleet));
    put(&mut fleet, guest(4, "v4", json!({"memory": "8G"})), "a");
    put(&mut fleet, guest(5, "v5", json!({"memory": "1G"})), "b");
    expect![[r#"may fail: 0, breaks: Some(([Name("a")], [Name("v4")])), largest: Some((Name("c"), "8G", 63))"#]].assert_eq(&told(&fleet));
    fleet.check().expect("a trial leaves everything as it was");
}

#[test]
fn a_silent_node_is_no_place_for_what_another_loses() {
    let mut fleet = fleet(&[("a", 8, 16), ("b", 8, 32), ("c", 8, 32)]);
    for (n, node, memory) in [(1, "a", "6G"), (2, "b", "12G"), (3, "c", "11G")] {
        put(&mut fleet, guest(n, &format!("v{n}"), json!({"memory": memory})), node);
    }
    fleet.set_health(&name("b"), NodeHealth::Offline);
    // The fullest is tried first: that trial leaves it as silent as it was.
    let found = capacity::capacity(&fleet);
    assert_eq!((found.may_fail, found.breaks.map(|b| (b.failed, b.left_over))), (0, Some((vec![name("c")], vec![name("v3")]))));
}

#[test]
fn a_simulation_says_where_it_breaks() {
    let mut fleet = fleet(&[("a", 8, 16), ("b", 8, 32)]);
    let outcome = simulate::add(&mut fleet, &guest(1, "app", json!({"memory": "4G"})), 20);
    assert_eq!((outcome.placed, outcome.by_node), (12, [(name("a"), 4), (name("b"), 8)].into()));
    let (vm, why) = outcome.broken.expect("12 of 20");
    assert_eq!(vm.as_str(), "app-13");
    expect!["no node can take it (a: needs 4G of memory, 0B of 16G are free; b: needs 4G of memory, 0B of 32G are free)"]
        .assert_eq(&words(&why));
}

/// A small cluster with labels, racks and rules, all from one number.
fn any_fleet(dice: &mut Dice) -> (Fleet, Vec<Guest>) {
    let nodes = 2 + dice.below(5);
    let mut fleet = Fleet::default();
    for n in 0..nodes {
        let node = format!("n{n}");
        let fields =
            json!({"failure_domain": format!("r{}", dice.below(3)), "labels": {"disk": if dice.below(2) == 0 { "ssd" } else { "hdd" }}});
        fleet.set_node(facts(&node, 2 + dice.below(6) as u32, 4 + dice.below(12)), record(&node, fields));
    }
    let guests = (0..4 * nodes).map(|n| any_guest(n, dice)).collect();
    (fleet, guests)
}

fn any_guest(n: u64, dice: &mut Dice) -> Guest {
    let app = format!("a{}", dice.below(3));
    let within = if dice.below(2) == 0 { "node" } else { "failure-domain" };
    let rule = json!([{"labels": {"app": format!("a{}", dice.below(3))}, "strict": dice.below(2) == 0, "within": within}]);
    let placement = match dice.below(5) {
        0 => json!({"anti_affinity": rule}),
        1 => json!({"affinity": rule}),
        2 => json!({"node_selector": {"disk": "ssd"}}),
        _ => json!({}),
    };
    let fields =
        json!({"cpus": 1 + dice.below(4), "memory": format!("{}G", 1 + dice.below(4)), "labels": {"app": app}, "placement": placement});
    let mut guest = guest(n, &format!("g{n}"), fields);
    guest.counts = if dice.below(8) == 0 { Counts::No } else { Counts::Yes };
    guest
}

/// What may never be, whatever was asked for in whatever order.
fn nothing_is_broken(fleet: &Fleet) {
    fleet.check().expect("sums and indexes are true");
    for seat in fleet.seats() {
        let limits = fleet.limits(seat);
        assert!(limits.memory.is_none_or(|most| seat.taken.memory <= most), "{}: {:?} of {limits:?}", seat.name, seat.taken);
        assert!(limits.vcpus.is_none_or(|most| seat.taken.vcpus <= most), "{}: {:?} of {limits:?}", seat.name, seat.taken);
    }
    for (guest, node) in fleet.owned() {
        let neighbours = rules::Neighbours::of(fleet, guest);
        let seat = fleet.seat(node).expect("it was chosen among these");
        assert!(neighbours.never_with.iter().all(|spots| spots.at(seat) == 0), "{} on {node}: {:?}", guest.name, neighbours.never_with);
    }
}

#[test]
fn whatever_comes_no_node_is_overfull_and_no_strict_rule_broken() {
    for seed in 1..120 {
        let mut dice = Dice(seed * 0x9e37_79b9);
        let (mut fleet, guests) = any_fleet(&mut dice);
        for guest in guests {
            let verdicts = explain(&fleet, &guest);
            match choose(&fleet, &guest) {
                Choice::Node(node) => {
                    assert!(verdicts[0].node == node && verdicts[0].fits.is_ok(), "explain agrees with choose: {verdicts:?}");
                    fleet.set_guest(guest.clone());
                    fleet.set_owner(guest.id, Some(&node));
                    let again = rules::Neighbours::of(&fleet, &guest);
                    let seat = fleet.seat(&node).expect("chosen");
                    assert_eq!(refuse::refuse(&fleet, seat, &guest, &again), None, "where it is it may be");
                }
                Choice::Blocked(why) => {
                    assert!(verdicts.iter().all(|v| v.fits.is_err()) && why.len() == verdicts.len());
                    fleet.set_guest(guest);
                }
            }
            if dice.below(4) == 0 {
                let gone = fleet.owned().nth(dice.below(3) as usize).map(|(guest, _)| guest.id);
                gone.into_iter().for_each(|id| fleet.drop_guest(id));
            }
            nothing_is_broken(&fleet);
        }
    }
}

#[test]
fn a_vm_on_its_way_has_its_room_at_both_ends() {
    let mut fleet = fleet(&[("a", 8, 8), ("b", 8, 8), ("c", 8, 4)]);
    put(&mut fleet, guest(1, "x", json!({"memory": "6G", "labels": {"app": "web"}})), "a");
    fleet.set_heir(guest(1, "x", json!({})).id, Some(&name("b")));
    let apart = json!({"memory": "3G", "placement": {"anti_affinity": [{"labels": {"app": "web"}, "strict": true}]}});
    check(
        &fleet,
        &guest(2, "y", json!({"memory": "3G"})),
        expect![[r#"
            c: yes: 75.0 % used then
            a: no: needs 3G of memory, 2G of 8G are free
            b: no: needs 3G of memory, 2G of 8G are free
        "#]],
    );
    fleet.set_owner(guest(1, "x", json!({})).id, Some(&name("b")));
    check(
        &fleet,
        &guest(3, "z", apart),
        expect![[r#"
            a: yes: 37.5 % used then
            c: yes: 75.0 % used then
            b: no: needs 3G of memory, 2G of 8G are free
        "#]],
    );
    assert_eq!((fleet.on_the_way(&name("a")), fleet.on_the_way(&name("b"))), (0, 0), "it has come");
}

/// Has a strict rule to be with others, and is.
fn has_company(fleet: &Fleet, guest: &Guest) -> bool {
    let seat = fleet.owner(guest.id).and_then(|node| fleet.seat(node)).expect("it has a node");
    let strict = guest.need.wish.affinity.iter().any(|rule| rule.strict);
    let own = rules::Neighbours::of(fleet, guest).only_with;
    strict && !own.is_empty() && own.iter().all(|spots| spots.at(seat) > 0)
}

/// Whatever is on a node that is emptied: what goes breaks no strict rule, and what belongs together stays together.
#[test]
fn vms_that_belong_together_leave_together_or_stay() {
    let mut together = 0;
    for seed in 1..200 {
        let (mut fleet, guests) = any_fleet(&mut Dice(seed * 0x9e37_79b9));
        for guest in guests {
            let node = match choose(&fleet, &guest) {
                Choice::Node(node) => node,
                Choice::Blocked(_) => continue,
            };
            fleet.set_guest(guest.clone());
            fleet.set_owner(guest.id, Some(&node));
        }
        let from = fleet.seats().max_by_key(|seat| seat.owned.len()).expect("there are nodes").name.clone();
        let mut record = NodeRecord::named(from.clone());
        record.cordon = Some(Cordon { by: "alice".into(), at: jiff::Timestamp::UNIX_EPOCH, why: String::new(), closure: Closure::Cordon });
        fleet.set_node(fleet.seat(&from).expect("it is there").facts.clone(), record);
        let mut left: Vec<Guest> =
            fleet.seat(&from).into_iter().flat_map(|seat| &seat.owned).filter_map(|id| fleet.guest(*id)).cloned().collect();
        let held: Vec<VmId> = left.iter().filter(|guest| has_company(&fleet, guest)).map(|guest| guest.id).collect();
        let (mut gone, mut stuck): (Vec<Guest>, Vec<Guest>) = Default::default();
        // Whoever found nothing is asked again when all others are through.
        for _ in 0..2 {
            left.append(&mut stuck);
            while !left.is_empty() {
                let guest = left.remove(left.iter().position(|guest| leave::follows(guest, gone.iter())).unwrap_or(0));
                let best = leave::explain(&fleet, &guest, &from).into_iter().next().filter(|verdict| verdict.fits.is_ok());
                let Some(best) = best else {
                    stuck.push(guest);
                    continue;
                };
                fleet.set_heir(guest.id, Some(&best.node));
                fleet.check().expect("sums and indexes are true");
                if seed % 2 == 0 {
                    fleet.set_owner(guest.id, Some(&best.node));
                }
                gone.push(guest);
            }
        }
        let on_the_way: Vec<_> = fleet.guests().filter_map(|guest| Some((guest.id, fleet.heir(guest.id)?.clone()))).collect();
        on_the_way.into_iter().for_each(|(id, to)| fleet.set_owner(id, Some(&to)));
        nothing_is_broken(&fleet);
        for guest in held.iter().filter_map(|id| fleet.guest(*id)) {
            assert!(
                has_company(&fleet, guest),
                "seed {seed}: {} on {:?} is without those that it must be with",
                guest.name,
                fleet.owner(guest.id)
            );
            together += usize::from(fleet.owner(guest.id) != Some(&from));
        }
    }
    assert!(together > 10, "{together} that must be with others went: the trial shows something");
}

#[test]
fn the_order_in_which_records_come_does_not_matter() {
    for seed in 1..100 {
        let (mut fleet, guests) = any_fleet(&mut Dice(seed * 0x9e37_79b9));
        for guest in &guests {
            if let Choice::Node(node) = choose(&fleet, guest) {
                fleet.set_guest(guest.clone());
                fleet.set_owner(guest.id, Some(&node));
            }
        }
        // The same records, owners before VMs before nodes, and each backwards.
        let mut other = Fleet::default();
        let owned: Vec<(Guest, Name)> = fleet.owned().map(|(guest, node)| (guest.clone(), node.clone())).collect();
        owned.iter().rev().for_each(|(guest, node)| other.set_owner(guest.id, Some(node)));
        owned.iter().rev().for_each(|(guest, _)| other.set_guest(guest.clone()));
        fleet.seats().collect::<Vec<_>>().into_iter().rev().for_each(|seat| other.set_node(seat.facts.clone(), seat.record.clone()));
        other.check().expect("sums are true whatever came first");
        for n in 100..110 {
            let next = any_guest(n, &mut Dice(seed * n));
            assert_eq!(explain(&fleet, &next), explain(&other, &next));
        }
    }
}
