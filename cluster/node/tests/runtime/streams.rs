//! Terminals, and processes started in a running container.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use cluster_node::runtime::Streams;
use cluster_node::spec::{Process, User};

use crate::world::{World, pipes};

/// Types a line at a terminal of a size, and returns all that it showed.
fn converse(master: OwnedFd) -> String {
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let mut master = std::fs::File::from(master);
    master.write_all(b"some words\n").unwrap();
    let mut shown = Vec::new();
    // A terminal that nobody has open any more reads as an error.
    let _ = master.read_to_end(&mut shown);
    String::from_utf8(shown).unwrap()
}

pub(crate) async fn a_terminal_of_its_own() {
    let mut world = World::new(1).await;
    let mut container = world.container(&["tty"]);
    container.process.terminal = true;
    container.process.user = User { uid: 1000, gid: 1000, groups: Vec::new() };
    let (id, started) = world.begin(container, Streams::Terminal).await;
    let shown = converse(started.unwrap().terminal.unwrap());
    assert!(shown.contains("terminals true true true controlling true console true"), "{shown}");
    assert!(shown.contains("read some words at 111x33"), "{shown}");
    assert_eq!(world.exit(&id).await.code, 0);
}

pub(crate) async fn exec_with_a_terminal() {
    let mut world = World::new(1).await;
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let process =
        Process { args: vec!["/payload".to_owned(), "tty".to_owned()], terminal: true, ..Process::default() };
    let started = world.runtime.exec(&id, "e", &process, Streams::Terminal).await.unwrap();
    let shown = converse(started.terminal.unwrap());
    assert!(shown.contains("terminals true true true controlling true console false"), "{shown}");
    assert!(shown.contains("read some words at 111x33"), "{shown}");
}

pub(crate) async fn exec_in_a_container() {
    let mut world = World::new(2).await;
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (stdin, mut input) = std::io::pipe().unwrap();
    let process = Process {
        args: vec!["/payload".to_owned(), "stdin".to_owned()],
        user: User { uid: 1000, gid: 1000, groups: Vec::new() },
        ..Process::default()
    };
    let streams = Streams::Pipes {
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
        stdin: Some(stdin.into()),
    };
    let started = world.runtime.exec(&id, "e1", &process, streams).await.unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", started.pid)).unwrap();
    assert!(groups.contains(&world.prefix), "it is limited like its container: {groups}");
    input.write_all(b"some words").unwrap();
    drop(input);
    let exited = world.exits.recv().await.unwrap();
    assert_eq!((exited.id.as_str(), exited.exit.code), ("e1", 0));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got some words");
    let (mut reader, streams) = pipes();
    let look = Process {
        args: vec!["/payload".to_owned(), "look".to_owned()],
        env: vec!["E=x".to_owned()],
        cwd: "/tmp".to_owned(),
        user: User { uid: 1000, gid: 1000, groups: vec![9] },
        no_new_privileges: true,
        ..Process::default()
    };
    world.runtime.exec(&id, "e2", &look, streams).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    for line in
        ["cwd /tmp", "Uid:\t1000\t1000\t1000\t1000", "Groups:\t9 ", "NoNewPrivs:\t1", "mount /proc proc"]
    {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(said.contains("(\"E\", \"x\")") && !said.contains("pid 1\n"), "{said}");
    assert!(world.runtime.stats(&id).unwrap().memory_bytes > 0);
    world.runtime.signal(&id, 9).await.unwrap();
    world.exit(&id).await;
}
