use expect_test::{Expect, expect};

use super::*;

/// What a person sees: the error, or the manifests in their minimal form.
fn check(text: &str, expect: Expect) {
    let seen = match parse("web.yaml", text) {
        Ok(documents) => documents.iter().map(|d| to_yaml_minimal(&d.manifest)).collect::<Vec<_>>().join("---\n"),
        Err(e) => match e.hint {
            Some(ref hint) => format!("{e}\nhint: {hint}\n"),
            None => format!("{e}\n"),
        },
    };
    expect.assert_eq(&seen);
}

#[test]
fn the_smallest_manifest() {
    check(
        "{kind: vm, name: hello, image: debian-13}",
        expect![[r#"
        kind: vm
        name: hello
        image: debian-13
    "#]],
    );
}

#[test]
fn short_forms_and_headers() {
    check(
        "api: vmkeep/v1\nkind: vm\nname: sql1\nimage: debian-13\ncpus: 2\nmemory: 2G\ncpu: {features: {vmx: off, avx: on}}\nboot: [root, lan]\n",
        expect![[r#"
            kind: vm
            name: sql1
            image: debian-13
            cpus: 2
            cpu:
              features:
                avx: "on"
                vmx: "off"
            memory: 2G
            boot:
            - root
            - lan
        "#]],
    );
}

#[test]
fn several_documents_of_all_kinds() {
    check(
        "---\nkind: network\nname: dmz\nipv4: 10.77.3.1/24\n---\nkind: image\nname: tiny\nsource: {from: build, recipe: tiny}\n---\n# nothing\n---\nkind: vm\nname: web1\nimage: tiny\nnics: []\ncloud_init: null\n",
        expect![[r#"
            kind: network
            name: dmz
            ipv4: 10.77.3.1/24
            ---
            kind: image
            name: tiny
            source:
              from: build
              recipe: tiny
            ---
            kind: vm
            name: web1
            image: tiny
            nics: []
            cloud_init: null
        "#]],
    );
}

#[test]
fn json_is_read_too() {
    check(
        r#"{"kind": "vm", "name": "hello", "image": "debian-13", "agent": false, "disks": [{"size": "20G"}]}"#,
        expect![[r#"
        kind: vm
        name: hello
        disks:
        - name: root
          image: debian-13
          size: 20G
        agent: false
    "#]],
    );
}

#[test]
fn unknown_words_get_the_nearest() {
    check(
        "kind: vm\nname: web1\nimage: tiny\ncpuz: 2\nrun: allways\ndisks:\n  - name: root\n    chace: none\n  - name: data\n    empty: true\n    size: 20G\n    bus: scsy\nbanana: {a: 1}\n",
        expect![[r#"
            web.yaml: 5 problems; nothing was changed
              web.yaml:4:1: vm web1: cpuz: there is no field 'cpuz'; did you mean 'cpus'?
                4 | cpuz: 2
                  | ^^^^
              web.yaml:5:6: vm web1: run: 'allways' is not one of always, on-failure, manual and halted; did you mean 'always'?
                5 | run: allways
                  |      ^^^^^^^
              web.yaml:8:5: vm web1: disks[root].chace: there is no field 'chace'; did you mean 'cache'?
                8 |     chace: none
                  |     ^^^^^
              web.yaml:12:10: vm web1: disks[data].bus: 'scsy' is not one of virtio, scsi, sata and nvme; did you mean 'scsi'?
                12 |     bus: scsy
                   |          ^^^^
              web.yaml:13:1: vm web1: banana: there is no field 'banana'; known are name, description, labels, protect, os, image, run, start, stop_timeout, restart, cpus, cpu, memory, machine, firmware, secure_boot, tpm, clock, boot, boot_once, disks, cdroms, nics, cloud_init, serial, display, agent, rng, watchdog, shares, devices, ha, placement and libvirt_xml
                13 | banana: {a: 1}
                   | ^^^^^^
        "#]],
    );
}

#[test]
fn unknown_kinds() {
    check(
        "kind: VM\nname: a\n---\nkind: pod\n---\nname: a\n---\nkind: vm\napi: vmkeep/v2\nname: a\nimage: x\n---\n- 1\n---\njust text\n",
        expect![[r#"
            web.yaml: 6 problems in 6 documents; nothing was changed
              web.yaml:1:7: VM a: kind: there is no kind 'VM'; did you mean 'vm'?
                1 | kind: VM
                  |       ^^
              web.yaml:4:7: pod: kind: there is no kind 'pod'; did you mean 'pool'?
                4 | kind: pod
                  |       ^^^
              web.yaml:6:1: a: kind: it is missing; write one of vm, network, image and pool
                6 | name: a
                  | ^
              web.yaml:9:6: vm a: api: this vmkeep reads 'vmkeep/v1'; leave the field out, or write that
                9 | api: vmkeep/v2
                  |      ^^^^^^^^^
              web.yaml:13:1: a manifest is a map of fields, like {kind: vm, name: hello, image: debian-13}
                13 | - 1
                   | ^
              web.yaml:15:1: a manifest is a map of fields, like {kind: vm, name: hello, image: debian-13}
                15 | just text
                   | ^^^^^^^^^
        "#]],
    );
}

#[test]
fn sizes_and_durations_without_unit() {
    check(
        "kind: vm\nname: a\nimage: x\nmemory: 2048\nstop_timeout: 30\ndisks: [{size: 20}]\nserial: {log: -1M}\n",
        expect![[r#"
        web.yaml: 4 problems; nothing was changed
          web.yaml:4:9: vm a: memory: '2048' has no unit; write 2048M or 2048G
            4 | memory: 2048
              |         ^^^^
          web.yaml:5:15: vm a: stop_timeout: '30' is not a duration; write a number and s, m, h or d, like 120s or 10m
            5 | stop_timeout: 30
              |               ^^
          web.yaml:6:16: vm a: disks[0].size: '20' has no unit; write 20M or 20G
            6 | disks: [{size: 20}]
              |                ^^
          web.yaml:7:15: vm a: serial.log: '-1M' is not a size; write a whole number and a unit, like 512M or 20G
            7 | serial: {log: -1M}
              |               ^^^
    "#]],
    );
}

#[test]
fn booleans_are_written_in_full() {
    check(
        "kind: vm\nname: a\nimage: x\nagent: yes\nrng: off\nprotect: 1\nmemory: {size: 1G, balloon: 'true'}\n",
        expect![[r#"
        web.yaml: 4 problems; nothing was changed
          web.yaml:4:8: vm a: agent: expected true or false, found 'yes'; write true or false in full
            4 | agent: yes
              |        ^^^
          web.yaml:5:6: vm a: rng: expected true or false, found 'off'; write true or false in full
            5 | rng: off
              |      ^^^
          web.yaml:6:10: vm a: protect: expected true or false, found the number 1
            6 | protect: 1
              |          ^
          web.yaml:7:29: vm a: memory.balloon: expected true or false, found 'true'
            7 | memory: {size: 1G, balloon: 'true'}
              |                             ^^^^^^
    "#]],
    );
}

#[test]
fn text_stays_as_it_was_written() {
    let text = "kind: vm\nname: 123\nimage: x\ndescription: 1e3\nlabels: {version: 1.10, flag: yes, octal: 0755, really: true}\ncloud_init: {password: 0123, user_data: '#!/bin/sh'}\n";
    let documents = parse("a.yaml", text).expect("all of it is text");
    let Manifest::Vm(spec) = &documents[0].manifest else { panic!("it is a VM") };
    assert_eq!(spec.name.as_str(), "123");
    assert_eq!(spec.description, "1e3");
    assert_eq!(spec.labels.values().collect::<Vec<_>>(), ["yes", "0755", "true", "1.10"]);
    assert_eq!(spec.cloud_init.as_ref().and_then(|c| c.password.as_deref()), Some("0123"));
    let sum = "12e4567890123456789012345678901234567890123456789012345678901234";
    let text = format!("kind: image\nname: a\nsource: {{from: url, url: 'https://example.org/a.qcow2', sha256: {sum}}}\n");
    let documents = parse("a.yaml", &text).expect("a checksum of digits and an e");
    let Manifest::Image(spec) = &documents[0].manifest else { panic!("it is an image") };
    assert!(matches!(&spec.source, crate::image::ImageSource::Url { sha256: Some(s), .. } if s == sum), "{:?}", spec.source);
}

#[test]
fn all_problems_of_all_documents_at_once() {
    check(
        "kind: vm\nname: Web/1\nmemory: 1.5G\nnics:\n  - {name: lan, mac: '01:00:5e:00:00:01'}\n  - {name: lan, mtu: 7}\n---\nkind: vm\nname: b\n  image: x\n---\nkind: vm\nname: c\nimage: x\ncpus: 0\nboot: [rot]\n",
        expect![[r#"
            web.yaml: 8 problems in 3 documents; nothing was changed
              web.yaml:2:7: vm Web/1: name: 'Web/1' is not a name: use lower case only
                2 | name: Web/1
                  |       ^^^^^
              web.yaml:3:9: vm Web/1: memory: unknown unit '.5G' in '1.5G'; use K, M, G or T (binary)
                3 | memory: 1.5G
                  |         ^^^^
              web.yaml:5:22: vm Web/1: nics[lan].mac: '01:00:5e:00:00:01' is a multicast MAC (its first byte is odd); a NIC needs a unicast one, like 52:54:00:12:34:56
                5 |   - {name: lan, mac: '01:00:5e:00:00:01'}
                  |                      ^^^^^^^^^^^^^^^^^^^
              web.yaml:6:12: vm Web/1: nics[lan].name: two nics are called 'lan'; each device needs a name of its own
                6 |   - {name: lan, mtu: 7}
                  |            ^^^
              web.yaml:6:22: vm Web/1: nics[lan].mtu: 7 is no MTU; 68 to 65535, and 1500 on most networks
                6 |   - {name: lan, mtu: 7}
                  |                      ^
              web.yaml:10:8: mapping values are not allowed in this context
                10 |   image: x
                   |        ^
              web.yaml:15:7: vm c: cpus.count: 0 is out of range; 1 to 512
                15 | cpus: 0
                   |       ^
              web.yaml:16:8: vm c: boot[0]: there is no disk, cdrom or NIC 'rot'; did you mean 'root'?
                16 | boot: [rot]
                   |        ^^^
        "#]],
    );
}

#[test]
fn wrong_shapes() {
    check(
        "kind: vm\nname: a\nimage: [x]\ndisks: {root: 1}\nnics: lan\ncpus: {count: two}\nmemory: {max: 2G}\ncloud_init: yes\nstart: 5\nlabels: [a]\ndescription:\n",
        expect![[r#"
        web.yaml: 9 problems; nothing was changed
          web.yaml:3:8: vm a: image: expected text, found a list
            3 | image: [x]
              |        ^
          web.yaml:4:8: vm a: disks: expected a list, found a map
            4 | disks: {root: 1}
              |        ^
          web.yaml:5:7: vm a: nics: expected a list, found 'lan'
            5 | nics: lan
              |       ^^^
          web.yaml:6:15: vm a: cpus.count: expected a whole number from 0 to 4294967295, found 'two'
            6 | cpus: {count: two}
              |               ^^^
          web.yaml:7:9: vm a: memory.size: it is missing
            7 | memory: {max: 2G}
              |         ^
          web.yaml:8:13: vm a: cloud_init: expected a map of fields (`key: value`), found 'yes'
            8 | cloud_init: yes
              |             ^^^
          web.yaml:9:8: vm a: start: expected a map of fields (`key: value`), found the number 5
            9 | start: 5
              |        ^
          web.yaml:10:9: vm a: labels: expected a map (`key: value`), found a list
            10 | labels: [a]
               |         ^
          web.yaml:11:12: vm a: description: expected text, found nothing (null)
            11 | description:
               |            ^
    "#]],
    );
}

#[test]
fn a_map_where_a_word_is_wanted() {
    check(
        "kind: vm\nname: a\nimage: x\nnics: [{mtu: {a: 1}, queues: []}]\nmemory: []\ndisks: [{size: {}, limits: {bandwidth: {}}}]\n",
        expect![[r#"
        web.yaml: 5 problems; nothing was changed
          web.yaml:4:14: vm a: nics[0].mtu: expected auto or a number, found a map
            4 | nics: [{mtu: {a: 1}, queues: []}]
              |              ^
          web.yaml:4:30: vm a: nics[0].queues: expected auto or a number, found a list
            4 | nics: [{mtu: {a: 1}, queues: []}]
              |                              ^
          web.yaml:5:9: vm a: memory: expected a size like 2G, or {size, max, balloon, hugepages}, found a list
            5 | memory: []
              |         ^
          web.yaml:6:16: vm a: disks[0].size: expected a size like 512M or 20G (binary units), found a map
            6 | disks: [{size: {}, limits: {bandwidth: {}}}]
              |                ^
          web.yaml:6:40: vm a: disks[0].limits.bandwidth: expected a size like 512M or 20G (binary units), found a map
            6 | disks: [{size: {}, limits: {bandwidth: {}}}]
              |                                        ^
    "#]],
    );
}

#[test]
fn missing_names() {
    check(
        "kind: vm\nimage: x\nagent: 7\n---\nkind: vm\nname: b\ndisks:\n  - {image: x}\n  - {empty: true, size: 1G}\ncdroms: [{image: y}]\nnics: [{}, {}]\n",
        expect![[r#"
            web.yaml: 7 problems in 2 documents; nothing was changed
              web.yaml:1:1: vm: name: it is missing
                1 | kind: vm
                  | ^
              web.yaml:3:8: vm: agent: expected true or false, found the number 7
                3 | agent: 7
                  |        ^
              web.yaml:8:5: vm b: disks[0].name: with two or more disks each needs a name of its own
                8 |   - {image: x}
                  |     ^
              web.yaml:9:5: vm b: disks[1].name: with two or more disks each needs a name of its own
                9 |   - {empty: true, size: 1G}
                  |     ^
              web.yaml:10:10: vm b: cdroms[0].name: it is missing
                10 | cdroms: [{image: y}]
                   |          ^
              web.yaml:11:8: vm b: nics[0].name: with two or more nics each needs a name of its own
                11 | nics: [{}, {}]
                   |        ^
              web.yaml:11:12: vm b: nics[1].name: with two or more nics each needs a name of its own
                11 | nics: [{}, {}]
                   |            ^
        "#]],
    );
}

#[test]
fn broken_yaml() {
    check(
        "kind: vm\nname: [a\n",
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:2:7: unclosed bracket '['
            2 | name: [a
              |       ^
    "#]],
    );
    check(
        "kind: vm\n\tname: a\n",
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:1:7: while scanning a plain scalar, found a tab
            1 | kind: vm
              |       ^
    "#]],
    );
    check(
        "kind: vm\nname: a\nname: b\nimage: x\n",
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:3:1: 'name' is written twice
            3 | name: b
              | ^^^^
    "#]],
    );
    check(
        "kind: vm\nname: *nobody\n",
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:2:7: no anchor (&name) of this name stands above
            2 | name: *nobody
              |       ^
    "#]],
    );
    check(
        "kind: vm\nname: \"a\n",
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:2:7: unclosed quote
            2 | name: "a
              |       ^
    "#]],
    );
    check(
        "kind: vm\nname: !!python/object:os.system a\n",
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:2:33: unsupported tag `!!python/object:os.system`
            2 | name: !!python/object:os.system a
              |                                 ^
    "#]],
    );
}

#[test]
fn the_same_object_twice() {
    check(
        "kind: vm\nname: a\nimage: x\n---\nkind: vm\nname: a\nimage: y\n---\nkind: network\nname: a\n",
        expect![[r#"
        web.yaml: 1 problem in 3 documents; nothing was changed
          web.yaml:6:7: vm a: name: there is another vm 'a' at web.yaml:1
            6 | name: a
              |       ^
    "#]],
    );
}

#[test]
fn images_and_networks() {
    check(
        "kind: image\nname: a\nsource: {from: url, url: 'ftp://x', sha256: abc}\n---\nkind: image\nname: b\n---\nkind: image\nname: c\nsource: {from: bild, recipe: tiny}\n---\nkind: image\nname: d\nsource: {from: build, recipe: debian-14}\n---\nkind: image\nname: e\nsource: {from: build, recipe: tiny, sha256: x}\n---\nkind: network\nname: n\nmode: bridge\nipv4: 10.0.0.0/24\n---\nkind: network\nname: o\nipv4: 8.8.8.1/24\nipv6: fd00::1/48\nbridge: br0\n",
        expect![[r#"
            web.yaml: 11 problems in 7 documents; nothing was changed
              web.yaml:3:26: image a: source.url: 'ftp://x' is no http:// or https:// address
                3 | source: {from: url, url: 'ftp://x', sha256: abc}
                  |                          ^^^^^^^^^
              web.yaml:3:45: image a: source.sha256: a SHA-256 is 64 hexadecimal digits, as `sha256sum FILE` prints it
                3 | source: {from: url, url: 'ftp://x', sha256: abc}
                  |                                             ^^^
              web.yaml:5:1: image b: source: it is missing
                5 | kind: image
                  | ^
              web.yaml:10:16: image c: source.from: 'bild' is not one of url, upload, build and volume; did you mean 'build'?
                10 | source: {from: bild, recipe: tiny}
                   |                ^^^^
              web.yaml:14:31: image d: source.recipe: 'debian-14' is not one of tiny, debian-12 and debian-13; did you mean 'debian-12'?
                14 | source: {from: build, recipe: debian-14}
                   |                               ^^^^^^^^^
              web.yaml:18:37: image e: source.sha256: there is no field 'sha256'; known are recipe
                18 | source: {from: build, recipe: tiny, sha256: x}
                   |                                     ^^^^^^
              web.yaml:20:1: network n: bridge: mode: bridge needs the name of an existing bridge of the host
                20 | kind: network
                   | ^
              web.yaml:23:7: network n: ipv4: mode: bridge has the addresses of the network outside; leave this out
                23 | ipv4: 10.0.0.0/24
                   |       ^^^^^^^^^^^
              web.yaml:27:7: network o: ipv4: 8.8.8.1 is public; NAT needs a private subnet (10/8, 172.16/12, 192.168/16, 100.64/10)
                27 | ipv4: 8.8.8.1/24
                   |       ^^^^^^^^^^
              web.yaml:28:7: network o: ipv6: a /48 breaks address autoconfiguration; use a /64
                28 | ipv6: fd00::1/48
                   |       ^^^^^^^^^^
              web.yaml:29:9: network o: bridge: 'br0' must begin with 'vmk' in mode: nat; vmkeep makes it, and touches no other bridge
                29 | bridge: br0
                   |         ^^^
        "#]],
    );
}

#[test]
fn nothing_in_it() {
    check(
        "",
        expect![[r#"
        web.yaml: no manifest in it
        hint: the smallest one is {kind: vm, name: hello, image: debian-13}
    "#]],
    );
    check(
        "# only a comment\n---\n...\n",
        expect![[r#"
        web.yaml: no manifest in it
        hint: the smallest one is {kind: vm, name: hello, image: debian-13}
    "#]],
    );
}

#[test]
fn long_lines_are_cut_around_the_mark() {
    let text =
        format!("{{kind: vm, name: a, image: x, labels: {{a: '{}'}}, cpus: none, description: '{}'}}", "x".repeat(300), "y".repeat(300));
    check(
        &text,
        expect![[r#"
        web.yaml: 2 problems; nothing was changed
          web.yaml:1:43: vm a: labels.a: a label's value has up to 63 letters, digits, '.', '_', '/', ':', '@', '+' or '-'
            1 | {kind: vm, name: a, image: x, labels: {a: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
              |                                           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
          web.yaml:1:354: vm a: cpus: 'none' is not a number of CPUs
            1 | xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'}, cpus: none, description: 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy
              |                                                             ^^^^
    "#]],
    );
}

#[test]
fn aliases_work_and_bombs_do_not() {
    check(
        "kind: vm\nname: a\nimage: &i x\ndisks:\n  - &d {name: root, size: 9G}\n  - {<<: *d, name: data, image: *i}\n",
        expect![[r#"
        kind: vm
        name: a
        disks:
        - name: root
          image: x
          size: 9G
        - name: data
          image: x
          size: 9G
    "#]],
    );
    let mut bomb = String::from("kind: vm\nname: a\nlabels:\n  a: &a [x,x,x,x,x,x,x,x,x,x]\n");
    for (this, last) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(["a", "b", "c", "d", "e", "f", "g"]) {
        bomb.push_str(&format!("  {this}: &{this} [{}]\n", vec![format!("*{last}"); 10].join(",")));
    }
    let begun = std::time::Instant::now();
    check(
        &bomb,
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:8:10: aliases repeat more than 20000 values: refused as an alias bomb
            8 |   e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]
              |          ^^
    "#]],
    );
    assert!(begun.elapsed().as_secs() < 5, "took {:?}", begun.elapsed());
    check(
        &format!("a: {}{}", "[".repeat(5000), "]".repeat(5000)),
        expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:1:36: recursion limit exceeded
            1 | a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
              |                                    ^
    "#]],
    );
}

#[test]
fn limits_have_names() {
    let big = format!("kind: vm\nname: a\ndescription: {}\n", "x".repeat(TEXT_BYTES_MAX));
    check(
        &big,
        expect![[r#"
        web.yaml: 4194335 bytes are too much for a manifest; the limit is 4 MiB
        hint: split it into several files
    "#]],
    );
    check(
        &"---\nkind: vm\n".repeat(DOCUMENTS_MAX + 1),
        expect![[r#"
        web.yaml: more than 1000 documents in one call
        hint: apply them in several calls
    "#]],
    );
}

#[test]
fn a_thousand_bad_documents_are_reported_in_part() {
    let error = parse("a.yaml", &"---\nkind: vmm\n".repeat(DOCUMENTS_MAX)).expect_err("nothing in it is right");
    assert_eq!(error.problems.len(), SHOWN_MAX + 1);
    expect!["and more; mend these first"].assert_eq(&error.problems[SHOWN_MAX].message);
}

#[test]
fn problems_found_later_are_shown_at_their_line() {
    let documents =
        parse("web.yaml", "# web\nkind: vm\nname: a\ndisks:\n  - name: root\n    image: nothere\n    size: 3G\n").expect("well formed");
    let problem = Problem { field: "disks[root].image".into(), message: "there is no image 'nothere'".into() };
    expect![[r#"
        web.yaml: 1 problem; nothing was changed
          web.yaml:6:12: vm a: disks[root].image: there is no image 'nothere'
            6 |     image: nothere
              |            ^^^^^^^"#]]
    .assert_eq(&documents[0].error(&[problem]).to_string());
    assert_eq!(documents[0].locate("disks[root].pool").line, 5);
    assert_eq!(documents[0].locate("memory").line, 2);
}

#[test]
fn from_the_wire() {
    let json = serde_json::json!({"kind": "vm", "name": 5, "image": "x", "disks": [{"name": "root", "size": 20}, {"name": "d", "sise": "1G"}], "agent": "yes"});
    expect![[r#"
        the manifest has 4 problems
          agent: expected true or false, found 'yes'; write true or false in full
          disks[root].size: '20' has no unit; write 20M or 20G
          disks[d].sise: there is no field 'sise'; did you mean 'size'?
          name: expected text, found the number 5"#]]
    .assert_eq(&from_json(json).expect_err("much of it is wrong").to_string());
    let json = serde_json::json!({"kind": "network", "name": "a"});
    expect![[r#"
        the manifest has 1 problem
          kind: a vm is wanted here, not a network"#]]
    .assert_eq(&vm_from_json(json).expect_err("not a VM").to_string());
    let json = serde_json::json!({"name": "a", "image": "x", "cloud_init": {"ssh_keys": ["@~/.ssh/id.pub"], "user_data": "@file"}});
    expect![[r#"
        the manifest has 2 problems
          cloud_init.ssh_keys[0]: @FILE is read by the vmkeep command; send the file's text
          cloud_init.user_data: @FILE is read by the vmkeep command; send the file's text"#]]
    .assert_eq(&vm_from_json(json).expect_err("files are read by the CLI").to_string());
    let spec = vm_from_json(serde_json::json!({"name": "a", "image": "x"})).expect("the smallest one");
    assert_eq!((spec.image, spec.disks.len(), spec.disks[0].name.as_str()), (None, 1, "root"));
}

#[test]
fn other_bodies() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its reading is looked at")]
    struct Body {
        command: Vec<String>,
        timeout: Option<crate::units::Seconds>,
    }
    let bad = serde_json::json!({"command": ["a", 1, null], "timeout": "5", "user": "x"});
    expect![[r#"
        the request has 4 problems
          command[1]: expected text, found the number 1
          command[2]: expected text, found nothing (null)
          timeout: '5' is not a duration; write a number and s, m, h or d, like 120s or 10m
          user: there is no field 'user'; known are command and timeout"#]]
    .assert_eq(&body_from_json::<Body>(bad).expect_err("bad").to_string());
}

/// Specs that use every field away from its default, and few.
fn rich() -> Vec<&'static str> {
    vec![
        "{kind: vm, name: a, image: x}",
        "{kind: vm, name: '1', disks: [{empty: true, size: 1G}], nics: [], cloud_init: null, display: null, description: 'off'}",
        "{kind: vm, name: a, image: x, labels: {tier: 'null', v: '1e3', y: 'yes'}, protect: true, os: windows, run: always, start: {order: 1, delay: 5s, wait_for: agent}, stop_timeout: 0s, restart: {max: 1, within: 1h30m}}",
        "{kind: vm, name: a, image: x, cpus: {count: 1, max: 8, sockets: 2, cores: 2, threads: 2}, cpu: {model: host, features: {vmx: off}}, memory: {size: 1G, max: 4G}, machine: q35, firmware: uefi, secure_boot: false, tpm: true, clock: localtime}",
        "{kind: vm, name: a, boot: [lan, root], disks: [{name: root, volume: v, size: 2T, pool: p, format: raw, bus: scsi, cache: unsafe, discard: false, serial: S-1, limits: {iops: 9, bandwidth: 100M}, read_only: true}, {name: b, image: x}], cdroms: [{name: cd, image: iso}, {name: cd1}]}",
        "{kind: vm, name: a, image: x, nics: [{name: lan, network: n, mac: '52:54:00:12:34:56', model: virtio, queues: 4, mtu: 9000, link: down, addresses: [10.0.0.5/24, slaac], gateway: 10.0.0.1, dns: [10.0.0.1]}, {name: wan, model: e1000e}]}",
        "{kind: vm, name: a, image: x, cloud_init: {hostname: h, user: u, users: [v, {name: w, sudo: true}], password: '007', ssh_keys: ['ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me'], timezone: UTC, locale: C.UTF-8, packages: [vim], user_data: \"#cloud-config\\nruncmd:\\n - a\\n\", network_data: \"version: 2\\n\"}}",
        "{kind: vm, name: a, image: x, serial: {log: 0B}, display: {listen: tcp, password: '12345678', video: qxl}, agent: false, rng: false, watchdog: {model: itco, action: none}, shares: [{name: s, path: /srv, read_only: true}], devices: {pci: ['0000:03:00.0'], usb: ['1d6b:0002']}, ha: {priority: 1}, libvirt_xml: [{op: add, path: devices, value: '<a/>'}, {op: remove, path: 'devices/disk[@alias=ua-disk-root]/driver/@cache'}]}",
        "{kind: network, name: n, description: d, mode: bridge, bridge: br0, mtu: 9000, domain: lab.example}",
        "{kind: network, name: n}",
        "{kind: image, name: i, description: d, pool: p, source: {from: volume, volume: v}}",
        "{kind: image, name: i, source: {from: upload, upload: 01890000-0000-7000-8000-000000000000}}",
    ]
}

#[test]
fn what_is_written_reads_back() {
    for text in rich() {
        let manifest = parse("a.yaml", text).unwrap_or_else(|e| panic!("{text}: {e}"))[0].manifest.clone().normalized();
        for yaml in [to_yaml_minimal(&manifest), to_yaml_full(&manifest), to_yaml_full(&manifest).replace('\n', "\r\n")] {
            let again = parse("b.yaml", &yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"))[0].manifest.clone().normalized();
            assert_eq!(again, manifest, "{yaml}");
        }
        assert_eq!(from_json(manifest.to_json()).expect("what we wrote"), manifest);
    }
}

#[test]
fn the_full_form_shows_every_field() {
    check_full(
        "{kind: vm, name: hello, image: debian-13}",
        expect![[r#"
            kind: vm
            name: hello
            description: ""
            labels: {}
            protect: false
            os: linux
            run: on-failure
            start:
              order: 100
              delay: 0s
              wait_for: running
            stop_timeout: 2m
            restart:
              max: 5
              within: 10m
            cpus:
              count: 1
            cpu:
              model: auto
              features: {}
            memory:
              size: 1G
              balloon: true
              hugepages: false
            machine: q35
            firmware: auto
            clock: utc
            boot: []
            disks:
            - name: root
              image: debian-13
              empty: false
              pool: default
              format: auto
              cache: none
              discard: true
              serial: auto
              limits:
                iops: 0
                bandwidth: 0B
              read_only: false
            cdroms: []
            nics:
            - name: lan
              network: default
              mac: auto
              queues: auto
              mtu: auto
              link: up
              addresses:
              - dhcp
              dns: []
            cloud_init:
              hostname: null
              user: null
              users: []
              password: null
              password_expires: false
              ssh_keys: []
              timezone: null
              locale: null
              packages: []
              user_data: null
              network_data: null
            serial:
              log: 10M
            display:
              type: vnc
              listen: socket
              video: auto
              password: null
            agent: true
            rng: true
            shares: []
            devices:
              pci: []
              usb: []
            libvirt_xml: []
        "#]],
    );
}

fn check_full(text: &str, expect: Expect) {
    expect.assert_eq(&to_yaml_full(&parse("a.yaml", text).expect("well formed")[0].manifest));
}
