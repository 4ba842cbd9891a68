//! The matrix of wishes against libvirt's schema, and against what libvirt 11.3 made of them (`testdata/golden`).

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use vmkeep_types::observed::FieldChange;

use super::testkit::{built, kvm, matrix, order};
use super::{adopt, choices_from, compare, disk_files, live_plan, seed_of};
use crate::seed;

fn validate(name: &str, xml: &str) {
    let mut file = tempfile::NamedTempFile::with_suffix(".xml").expect("a file");
    file.write_all(xml.as_bytes()).expect("written");
    let out = Command::new("virt-xml-validate").arg(file.path()).arg("domain").output().expect("package libvirt-clients");
    assert!(out.status.success(), "{name}: {}{}\n{xml}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}

#[test]
fn everything_built_is_valid_by_libvirts_schema() {
    for (name, order, host) in matrix() {
        validate(&name, &built(&order, &host));
    }
}

fn golden(name: &str, view: &str) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/domain/testdata/golden").join(format!("{name}.{view}.xml"));
    std::fs::read_to_string(path).ok()
}

fn words(list: &[FieldChange]) -> String {
    list.iter().map(|c| format!("{}: {} -> {}\n", c.field, c.from, c.to)).collect()
}

#[test]
fn what_libvirt_stores_is_no_drift() {
    for (name, mut order, host) in matrix() {
        let stored = golden(&name, "stored").expect("each wish has its dump");
        let fresh = built(&order, &host);
        let first = compare(&fresh, &stored).expect("both parse");
        assert_eq!((words(&first.drift), words(&first.conflicts)), (String::new(), String::new()), "{name}, as first written");
        // From the choices the same description comes again, addresses and all.
        order.choices = choices_from(&stored, &order.choices).expect("it parses");
        let again = built(&order, &host);
        validate(&name, &again);
        let second = compare(&again, &stored).expect("both parse");
        assert_eq!((words(&second.drift), words(&second.conflicts)), (String::new(), String::new()), "{name}, from its choices");
        assert_eq!(choices_from(&stored, &order.choices).expect("it parses"), order.choices, "{name}: nothing is chosen twice");
    }
}

#[test]
fn what_runs_is_as_wished() {
    let mut seen = 0;
    for (name, mut order, host) in matrix() {
        let Some(live) = golden(&name, "live") else { continue };
        seen += 1;
        for from in ["the wish", "its choices"] {
            let mut plan = live_plan(&built(&order, &host), &live).expect("both parse");
            // No guest was there to hear the balloon.
            plan.changes.retain(|(change, _)| !(name == "tcg-secure" && change.field == "memory.size"));
            assert_eq!((words(&plan.pending), plan.changes), (String::new(), Vec::new()), "{name}, from {from}");
            order.choices = choices_from(&golden(&name, "stored").expect("dump"), &order.choices).expect("it parses");
        }
    }
    assert!(seen >= 12, "{seen} dumps of running domains");
}

#[test]
fn the_format_is_that_of_the_data_and_never_mended() {
    // What the wish said when the disk was new; an overlay of another tool's lies over it now.
    let order = order(serde_json::json!({"firmware": "bios", "disks": [{"name": "root", "empty": true, "size": "1G", "format": "raw"}]}));
    let wanted = built(&order, &kvm());
    assert!(wanted.contains("type=\"qcow2\"") || wanted.contains("type='qcow2'"), "{wanted}");
    let other = wanted.replace("'qcow2'", "'raw'").replace("\"qcow2\"", "\"raw\"");
    let found = compare(&wanted, &other).expect("both parse");
    assert_eq!((words(&found.drift), words(&found.conflicts)), (String::new(), "disks[root].format: raw -> qcow2\n".to_owned()));
}

#[test]
fn files_of_disks_are_told_with_what_lies_below_them() {
    let xml = "<domain><devices><disk device='disk'><source file='/p/a.snap1'/><backingStore type='file'><source file='/p/a.qcow2'/>\
               <backingStore/></backingStore></disk><disk device='disk'><source dev='/dev/vg/b'/></disk><disk device='cdrom'/>\
               <interface><source dev='eth0'/></interface></devices></domain>";
    let files: Vec<String> = disk_files(xml).expect("it parses").into_iter().collect();
    assert_eq!(files, ["/dev/vg/b", "/p/a.qcow2", "/p/a.snap1"]);
}

/// As after the loss of the store: with a seed that is vmkeep's, and with one that it cannot read.
#[test]
fn a_seed_stays_with_a_domain_that_is_taken_back() {
    let (_, mut lost, host) = matrix().into_iter().find(|(name, ..)| name == "tcg-bios").expect("a wish");
    let stored = golden("tcg-bios", "stored").expect("a dump");
    lost.choices = choices_from(&stored, &lost.choices).expect("it parses");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("seed.img");
    seed::write(&lost, &file).expect("written");
    assert_eq!(seed_of(&stored), Some(PathBuf::from(format!("{}/{}-seed.img", super::testkit::IMAGES, lost.vm))));
    for image in [seed::read(&file), None] {
        let taken = adopt(&stored, &stored, image.as_deref()).expect("a domain");
        let (wish, patches) =
            (taken.spec.cloud_init.clone(), taken.spec.libvirt_xml.iter().filter(|p| format!("{p:?}").contains("ua-seed")));
        match image {
            Some(_) => assert_eq!((wish, patches.count()), (lost.spec.cloud_init.clone(), 0)),
            None => assert_eq!((wish, patches.count()), (None, 1), "kept as it is"),
        }
        let order = vmkeep_types::order::Order { spec: taken.spec, choices: taken.choices, ..lost.clone() };
        let again = built(&order, &host);
        validate("taken back", &again);
        let found = compare(&again, &stored).expect("both parse");
        assert_eq!((words(&found.drift), words(&found.conflicts)), (String::new(), String::new()), "{:?}", taken.warnings);
    }
}

#[test]
fn what_qemu_had_not_to_give_waits_for_no_restart() {
    let order = order(serde_json::json!({"firmware": "bios", "disks": [{"name": "root", "empty": true, "size": "1G"}]}));
    let wanted = built(&order, &kvm());
    let (required, disabled) = ("<feature policy='require' name='x2apic'/>", "<feature policy='disable' name='x2apic'/>");
    assert!(wanted.contains(required) && wanted.contains("check='partial'"), "{wanted}");
    let running = wanted.replace(required, disabled);
    assert_eq!(words(&live_plan(&wanted, &running).expect("both parse").pending), "", "libvirt started it without");
    // The other way round somebody wants it off, and it is on until the next start.
    let pending = words(&live_plan(&running, &wanted).expect("both parse").pending);
    assert_eq!(pending, "cpu.features.x2apic: on -> off\n");
    let stored = compare(&wanted, &running).expect("both parse");
    assert_eq!(words(&stored.drift), "cpu.features.x2apic: off -> on\n", "somebody edited the definition");
}

#[test]
fn who_becomes_highly_available_is_where_the_guard_looks_after_the_next_start() {
    let wish = |ha: serde_json::Value| serde_json::json!({"firmware": "bios", "disks": [], "ha": ha});
    let of = |ha| built(&order(wish(ha)), &kvm());
    let (guarded, alone) = (of(serde_json::json!({})), of(serde_json::Value::Null));
    let with = |partition: &str| alone.replace("<devices>", &format!("<resource><partition>{partition}</partition></resource><devices>"));
    let told = |wanted: &str, actual: &str| {
        let (stored, running) = (compare(wanted, actual).expect("both parse"), live_plan(wanted, actual).expect("both parse"));
        (words(&stored.drift), words(&running.pending))
    };
    let both = |words: &str| (words.to_owned(), words.to_owned());
    assert_eq!(told(&guarded, &guarded), both(""));
    assert_eq!(told(&guarded, &alone), both("ha.partition: none -> /machine/vmkeepha\n"));
    assert_eq!(told(&guarded, &with("/machine")), both("ha.partition: /machine -> /machine/vmkeepha\n"));
    assert_eq!(told(&alone, &guarded), both("ha.partition: /machine/vmkeepha -> none\n"));
    assert_eq!(told(&alone, &with("/machine")), both(""), "where libvirt puts those that say nothing");
    assert_eq!(told(&alone, &with("/gold")), both(""), "an administrator's own");
}
