use expect_test::{Expect, expect, expect_file};

use super::*;

fn check(path: &str, expect: Expect) {
    let seen = match explain(path) {
        Ok(page) => page,
        Err(e) => format!("error: {e}\nhint: {}\n", e.hint.as_deref().unwrap_or("none")),
    };
    expect.assert_eq(&seen);
}

#[test]
fn a_kind() {
    check(
        "vm",
        expect![[r#"
            FIELD     vm
            TYPE      map

            A virtual machine.

            FIELDS
              agent         true or false (default true)
              api           vmkeep/v1
              boot          list of name (default [])
              boot_once     name or null
              cdroms        list of map (default [])
              clock         utc or localtime (default utc)
              cloud_init    map or null
              cpu           map
              cpus          number or map (default {count: 1})
              description   text (default '')
              devices       map (default {pci: [], usb: []})
              disks         list of map (default [])
              display       map or null
              firmware      uefi or bios or auto (default auto)
              ha            map or null
              image         name or null
              kind          vm (must be written)
              labels        map (default {})
              libvirt_xml   list of map (default [])
              machine       q35 or pc (default q35)
              memory        size like 512M or 20G (binary units) or map
              name          name (must be written)
              nics          list of map
              os            linux or windows or other (default linux)
              placement     map
              protect       true or false (default false)
              restart       map (default {max: 5, within: 10m})
              rng           true or false (default true)
              run           always or on-failure or manual or halted (default on-failure)
              secure_boot   true or false or null
              serial        map (default {log: 10M})
              shares        list of map (default [])
              start         map
              stop_timeout  duration like 120s, 10m or 2h (default 2m)
              tpm           true or false or null
              watchdog      map or null
        "#]],
    );
    check(
        "pool",
        expect![[r#"
        FIELD     pool
        TYPE      map

        Where volumes and images lie.

        FIELDS
          api          vmkeep/v1
          description  text (default '')
          kind         pool (must be written)
          name         name (must be written)
          driver       dir (must be written)
          path         text (must be written)
          shared       true or false
    "#]],
    );
    check(
        "network",
        expect![[r#"
            FIELD     network
            TYPE      map

            A network that NICs attach to.

            FIELDS
              api          vmkeep/v1
              bridge       text or null
              description  text (default '')
              domain       text (default vmk)
              ipv4         text or null
              ipv6         text or null
              kind         network (must be written)
              mode         nat or bridge (default nat)
              mtu          number or null
              name         name (must be written)
        "#]],
    );
    check(
        "image.source",
        expect![[r#"
            FIELD     image.source
            TYPE      map
            DEFAULT   none; it must be written

            Where an image comes from: the body of `POST /v1/images`.

            FIELDS
              from    url or upload or build or volume (must be written)
              sha256  text or null
              url     text
              upload  text
              recipe  tiny or debian-12 or debian-13
              volume  name
        "#]],
    );
}

#[test]
fn fields() {
    check(
        "vm.disks",
        expect![[r#"
            FIELD     vm.disks
            TYPE      list of map
            DEFAULT   []

            One disk. Exactly one of `image`, `volume`, `empty: true`.

            FIELDS
              bus        virtio or scsi or sata or nvme or null
              cache      writeback or writethrough or none or unsafe (default none)
              discard    true or false (default true)
              empty      true or false (default false)
              format     qcow2 or raw or auto (default auto)
              image      name or null
              limits     map (default {bandwidth: 0B, iops: 0})
              name       name (default root)
              pool       name (default default)
              read_only  true or false (default false)
              serial     text (default auto)
              size       size like 512M or 20G (binary units) or null
              volume     name or null
        "#]],
    );
    check(
        "vm.disks[root].cache",
        expect![[r#"
        FIELD     vm.disks.cache
        TYPE      writeback or writethrough or none or unsafe
        DEFAULT   none

        VALUES
          writeback
          writethrough
          none          O_DIRECT; becomes writeback with a warning where the file system has none.
          unsafe        Loses data at a power cut: for scratch only.
    "#]],
    );
    check(
        "vm.memory",
        expect![[r#"
        FIELD     vm.memory
        TYPE      size like 512M or 20G (binary units) or map
        DEFAULT   {balloon: true, hugepages: false, size: 1G}

        `memory: 2G` or `{size: 4G, max: 16G, balloon: true, hugepages: false}`.

        FIELDS
          balloon    true or false (default true)
          hugepages  true or false (default false)
          max        size like 512M or 20G (binary units) or null
          size       size like 512M or 20G (binary units) (must be written)
    "#]],
    );
    check(
        "vm.cpus",
        expect![[r#"
        FIELD     vm.cpus
        TYPE      number or map
        DEFAULT   {count: 1}

        `cpus: 2` or `{count: 4, max: 8, sockets: 1, cores: 8, threads: 1}`. A topology must multiply to
        `max` (or `count`).

        FIELDS
          cores    number or null
          count    number (must be written)
          max      number or null
          sockets  number or null
          threads  number or null
    "#]],
    );
    check(
        "vm.run",
        expect![[r#"
        FIELD     vm.run
        TYPE      always or on-failure or manual or halted
        DEFAULT   on-failure

        The operator's policy on when the VM runs; see docs/concepts/run-policy.md for the table.

        VALUES
          always      Runs whenever its host does; a guest that powers itself off is started again.
          on-failure  Started at boot unless stopped on purpose; restarted after a crash; a guest's own power-off is respected.
          manual      Started and stopped by hand only.
          halted      Never runs.
    "#]],
    );
    check(
        "vm.name",
        expect![[r#"
        FIELD     vm.name
        TYPE      name
        DEFAULT   none; it must be written

        Unique in its project. A rename keeps the uuid.
    "#]],
    );
    check(
        "vm.stop_timeout",
        expect![[r#"
        FIELD     vm.stop_timeout
        TYPE      duration like 120s, 10m or 2h
        DEFAULT   2m

        How long a graceful stop may take before the VM is killed; 0s = never killed.
    "#]],
    );
    check(
        "vm.nics.mtu",
        expect![[r#"
        FIELD     vm.nics.mtu
        TYPE      auto or number
        DEFAULT   auto

        Bytes, 68 to 65535; auto = the network's.
    "#]],
    );
    check(
        "vm.labels",
        expect![[r#"
        FIELD     vm.labels
        TYPE      map
        DEFAULT   {}
    "#]],
    );
    check(
        "vm.watchdog",
        expect![[r#"
        FIELD     vm.watchdog
        TYPE      map or null

        FIELDS
          action  reset or poweroff or pause or none (default reset)
          model   i6300esb or itco (default i6300esb)
    "#]],
    );
    check(
        "vm.disks.limits.bandwidth",
        expect![[r#"
        FIELD     vm.disks.limits.bandwidth
        TYPE      0 or size like 512M or 20G (binary units)
        DEFAULT   0B

        Bytes per second, reads and writes together: 100M. `0` or `0B` = unlimited.
    "#]],
    );
    check(
        "vm.kind",
        expect![[r#"
        FIELD     vm.kind
        TYPE      vm
        DEFAULT   none; it must be written

        What the document describes.

        VALUES
          vm  What the document describes.
    "#]],
    );
}

#[test]
fn slips() {
    check(
        "",
        expect![[r#"
            error: explain what? one of vm, network, image and pool
            hint: vmkeep explain vm.disks
        "#]],
    );
    check(
        "vn",
        expect![[r#"
        error: there is no kind 'vn'; did you mean 'vm'?
        hint: vmkeep explain vm
    "#]],
    );
    check(
        "vm.disk.cache",
        expect![[r#"
        error: vm has no field 'disk'; did you mean 'disks'?
        hint: vmkeep explain vm
    "#]],
    );
    check(
        "vm.disks.chace",
        expect![[r#"
        error: vm.disks has no field 'chace'; did you mean 'cache'?
        hint: vmkeep explain vm.disks
    "#]],
    );
    check(
        "vm.name.x",
        expect![[r#"
        error: vm.name has no fields of its own
        hint: vmkeep explain vm.name
    "#]],
    );
    check(
        "vm.labels.tier",
        expect![[r#"
        error: vm.labels takes keys of your own choice
        hint: vmkeep explain vm.labels
    "#]],
    );
}

/// Every field of every kind has a page.
#[test]
fn every_field_can_be_explained() {
    let schema = schema();
    let look = Look { defs: &schema["$defs"] };
    let mut paths: Vec<(String, Value)> = KINDS.map(|k| (k.to_owned(), json!({"$ref": format!("{DEFS}{k}")}))).into();
    let mut seen = 0;
    while let Some((path, schema)) = paths.pop() {
        let page = explain(&path).expect("it is a path");
        let kind = page.lines().find(|l| l.starts_with("TYPE")).expect("each page has a type");
        assert!(!kind.contains("anything") || path == "vm.cloud_init.users", "{page}");
        seen += 1;
        paths.extend(look.fields(&schema).into_iter().map(|f| (format!("{path}.{}", f.name), f.schema)));
    }
    assert!(seen > 100, "{seen} fields");
}

/// The published schema. After a change of the types: `UPDATE_EXPECT=1 cargo test -p vmkeep-types explain`.
#[test]
fn the_committed_schema_is_this_one() {
    let text = serde_json::to_string_pretty(&schema()).expect("it is JSON") + "\n";
    expect_file!["../../../../docs/reference/manifest.schema.json"].assert_eq(&text);
}

/// What parses must be what the schema describes: every field of a full manifest is known to it.
#[test]
fn the_schema_knows_what_is_written() {
    let schema = schema();
    let look = Look { defs: &schema["$defs"] };
    let spec = VmSpec::named("a".parse().expect("a name"));
    let value = serde_json::to_value(spec).expect("it is JSON");
    let known: Vec<String> = look.fields(&json!({"$ref": "#/$defs/vm"})).into_iter().map(|f| f.name).collect();
    for key in value.as_object().expect("a struct").keys() {
        assert!(known.contains(key), "{key}");
    }
}
