//! What needs no server: help, explanations, completions, man pages.

mod stub;

use expect_test::expect;
use stub::run;

#[test]
fn fields_are_explained_without_a_server() {
    let dir = tempfile::tempdir().expect("a directory");
    expect![[r#"
        exit 0
        --- stdout
        FIELD     vm.disks.cache
        TYPE      writeback or writethrough or none or unsafe
        DEFAULT   none

        VALUES
          writeback
          writethrough
          none          O_DIRECT; becomes writeback with a warning where the file system has none.
          unsafe        Loses data at a power cut: for scratch only.
    "#]]
    .assert_eq(&run(&dir, &dir.path().join("nobody"), &["explain", "vm.disks.cache"], ""));
    expect![[r#"
        exit 1
        --- stderr
        error: vm has no field 'dsks'; did you mean 'disks'?
        hint: vmkeep explain vm
    "#]]
    .assert_eq(&run(&dir, &dir.path().join("nobody"), &["explain", "vm.dsks"], ""));
}

#[test]
fn help_is_short() {
    let dir = tempfile::tempdir().expect("a directory");
    expect![[r#"
        exit 0
        --- stdout
        Virtual machines that are kept running

        Usage: vmkeep [OPTIONS] <COMMAND>

        Commands:
          apply        Make what manifests say
          plan         Show what apply would change, field by field, and what needs a restart
          delete       Delete what manifests name
          export       Write everything as manifests
          explain      Explain a field of a manifest: vm.disks.cache
          launch       Make and start a VM from an image
          top          VMs by their use of CPU, memory, disk and network
          console      Serial console of a VM (same as 'vm console')
          events       What happened (same as 'event list')
          vm           Virtual machines
          image        What VM disks are made from
          volume       Disks' data
          network      Networks that VMs attach to
          pool         Where volumes and images lie
          node         Hosts
          cluster      Many hosts as one
          ha           What happens when a host dies
          host         The host itself
          op           Long work
          event        What happened
          token        Access over the network
          secret       Keys under which passwords lie sealed
          sim          Play through what happens to a cluster when its nodes fail
          version      Versions of this program and the daemon
          completions  Completions for a shell
          man          Write man pages into a directory

        Options:
          -V, --version  Print version

        Global options:
          -o, --output <OUTPUT>    Format of the data on stdout [default: table] [possible values: table,
                                   wide, json, yaml, name]
              --wait               Wait for the end of the work and show its steps (the default)
              --no-wait            Return as soon as the wish is written
              --timeout <TIME>     How long to wait, like 90s or 5m; for 'vm stop': how long the guest may
                                   take before it is killed
          -y, --yes                Do not ask before something is destroyed
              --dry-run            Say what would be done and change nothing
          -q, --quiet              Results only: no progress, no hints
              --project <NAME>     Project to work in [env: VMKEEP_PROJECT] [default: default]
              --socket <PATH>      Socket of the local daemon [env: VMKEEP_SOCKET] [default:
                                   /run/vmkeep/vmkeepd.sock]
              --server <URL>       Server to talk to instead, like https://host:8443; several of one cluster
                                   with commas between [env: VMKEEP_SERVER]
              --token-file <FILE>  File with the token for --server (or the token itself in VMKEEP_TOKEN)
                                   [env: VMKEEP_TOKEN_FILE]
              --ca-file <FILE>     Certificate of the authority that signed the server's [env:
                                   VMKEEP_CA_FILE]
              --cert-file <FILE>   Your certificate for --server, if it takes certificates of users; its key
                                   with --key-file [env: VMKEEP_CERT_FILE]
              --key-file <FILE>    Key of --cert-file [env: VMKEEP_KEY_FILE]
              --color <WHEN>       Colours; NO_COLOR is obeyed [default: auto] [possible values: auto,
                                   always, never]
          -h, --help               Print help

        Examples:
          vmkeep image build tiny
          vmkeep launch tiny hello --console
          vmkeep apply -f web.yaml
          vmkeep vm list
          vmkeep host check

        Exit codes: 0 done, 1 failed, 2 wrong usage, 3 absent, 4 conflict, 5 control plane unreachable
    "#]]
    .assert_eq(&run(&dir, &dir.path().join("nobody"), &["--help"], ""));
}

#[test]
fn help_of_a_verb_says_what_holds_everywhere_too() {
    let dir = tempfile::tempdir().expect("a directory");
    expect![[r#"
        exit 0
        --- stdout
        Shut VMs down and keep them off

        Usage: vmkeep vm stop [OPTIONS] <NAME>...

        Arguments:
          <NAME>...  VMs

        Options:
              --force  Pull the plug at once (same as 'vm kill')

        Global options:
          -o, --output <OUTPUT>    Format of the data on stdout [default: table] [possible values: table,
                                   wide, json, yaml, name]
              --wait               Wait for the end of the work and show its steps (the default)
              --no-wait            Return as soon as the wish is written
              --timeout <TIME>     How long to wait, like 90s or 5m; for 'vm stop': how long the guest may
                                   take before it is killed
          -y, --yes                Do not ask before something is destroyed
              --dry-run            Say what would be done and change nothing
          -q, --quiet              Results only: no progress, no hints
              --project <NAME>     Project to work in [env: VMKEEP_PROJECT] [default: default]
              --socket <PATH>      Socket of the local daemon [env: VMKEEP_SOCKET] [default:
                                   /run/vmkeep/vmkeepd.sock]
              --server <URL>       Server to talk to instead, like https://host:8443; several of one cluster
                                   with commas between [env: VMKEEP_SERVER]
              --token-file <FILE>  File with the token for --server (or the token itself in VMKEEP_TOKEN)
                                   [env: VMKEEP_TOKEN_FILE]
              --ca-file <FILE>     Certificate of the authority that signed the server's [env:
                                   VMKEEP_CA_FILE]
              --cert-file <FILE>   Your certificate for --server, if it takes certificates of users; its key
                                   with --key-file [env: VMKEEP_CERT_FILE]
              --key-file <FILE>    Key of --cert-file [env: VMKEEP_KEY_FILE]
              --color <WHEN>       Colours; NO_COLOR is obeyed [default: auto] [possible values: auto,
                                   always, never]
          -h, --help               Print help
    "#]]
    .assert_eq(&run(&dir, &dir.path().join("nobody"), &["vm", "stop", "--help"], ""));
}

#[test]
fn completions_and_man_pages_are_written() {
    let dir = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&dir, &dir.path().join("nobody"), &["completions", shell], "");
        assert!(script.starts_with("exit 0\n") && script.contains("resize-disk"), "{shell}: {script}");
    }
    let told = run(&dir, &dir.path().join("nobody"), &["man", "pages"], "");
    assert!(told.starts_with("exit 0\n"), "{told}");
    assert!(dir.path().join("pages/vmkeep-vm-resize-disk.1").exists());
}
