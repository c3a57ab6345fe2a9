//! What passes connections on, between sockets of the loopback: the test plays the client, and the server inside.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use isles_network::user::relay::{FIRST_RELAYED, Relay};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

/// What is asked of the thread that passes on: a connection, and where to; answered is whether it was taken.
type Open = (OwnedFd, SocketAddr, [Option<SocketAddr>; 2], Sender<bool>);

/// A relay with a thread of its own.
struct Passing {
    listener: TcpListener,
    opens: Option<Sender<Open>>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
    /// How many connections there are, after each time that something has happened.
    counts: Receiver<usize>,
}

impl Passing {
    /// One that has so many connections at most, with a lot of room for what is said in each, or not.
    fn new(most: usize, small: bool) -> Passing {
        let (opens, asked) = channel::<Open>();
        let (count, counts) = channel();
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        let woken = wake.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let waiting = epoll::create(CreateFlags::CLOEXEC).unwrap();
            epoll::add(&waiting, &woken, EventData::new_u64(0), EventFlags::IN).unwrap();
            let sockets = |ipv6| {
                let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
                let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
                if small {
                    sockopt::set_socket_send_buffer_size(&socket, 32 << 10)?;
                }
                Ok(socket)
            };
            let mut relay = Relay::new(Box::new(sockets), waiting.try_clone().unwrap(), most);
            let mut events = Vec::with_capacity(16);
            loop {
                let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                events.clear();
                let room = rustix::buffer::spare_capacity(&mut events);
                epoll::wait(&waiting, room, relay.is_unsettled().then_some(&now)).unwrap();
                for event in &events {
                    if event.data.u64() >= FIRST_RELAYED {
                        relay.stirred(event.data.u64(), event.flags);
                        continue;
                    }
                    rustix::io::read(&woken, &mut [0u8; 8]).unwrap();
                    match asked.try_recv() {
                        Ok((client, peer, places, taken)) => {
                            taken.send(relay.open(client, peer, places).is_ok()).unwrap();
                        }
                        Err(_) => return,
                    }
                }
                relay.settle();
                let _ = count.send(relay.len());
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Passing { listener, opens: Some(opens), wake, thread: Some(thread), counts }
    }

    /// A client's connection that is passed on to the places, where there is room for it.
    fn try_client(&self, places: [Option<SocketAddr>; 2]) -> Option<TcpStream> {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = self.listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        self.open(accepted.into(), peer, places).then_some(client)
    }

    /// Whether a connection is taken.
    fn open(&self, accepted: OwnedFd, peer: SocketAddr, places: [Option<SocketAddr>; 2]) -> bool {
        let (taken, answer) = channel();
        self.opens.as_ref().unwrap().send((accepted, peer, places, taken)).unwrap();
        self.wake();
        answer.recv().unwrap()
    }

    fn client(&self, place: SocketAddr) -> TcpStream {
        self.try_client([Some(place), None]).unwrap()
    }

    fn wake(&self) {
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).unwrap();
    }

    /// Waits until there are so many connections.
    fn until(&self, number: usize) {
        while self.counts.recv_timeout(Duration::from_secs(20)).unwrap() != number {}
    }

    /// The end of the container.
    fn end(&mut self) {
        drop(self.opens.take());
        self.wake();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A server at an address where the clients' ports are free.
fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let place = listener.local_addr().unwrap();
    (listener, place)
}

/// A place where nobody listens.
fn nobody() -> SocketAddr {
    server().1
}

/// Bytes that are not the same anywhere.
fn bytes(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn data_goes_both_ways_and_each_end_closes_for_itself() {
    let passing = Passing::new(10, false);
    let (listener, place) = server();
    for length in [0, 1, 1000, 30 << 20] {
        let mut client = passing.client(place);
        let (mut inside, _) = listener.accept().unwrap();
        let data = bytes(length);
        let sent = data.clone();
        let mut writer = client.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        inside.read_to_end(&mut heard).unwrap();
        sender.join().unwrap();
        assert!(heard == data, "{length}");
        // The other way is still open.
        let sender = std::thread::spawn(move || inside.write_all(&heard).unwrap());
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        sender.join().unwrap();
        assert!(answer == data, "{length}");
        passing.until(0);
    }
}

#[test]
fn the_server_may_close_first() {
    let passing = Passing::new(10, false);
    let (listener, place) = server();
    let mut client = passing.client(place);
    let (mut inside, _) = listener.accept().unwrap();
    inside.write_all(b"bye").unwrap();
    inside.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "bye");
    client.write_all(b"and you").unwrap();
    drop(client);
    inside.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "byeand you");
    passing.until(0);
}

#[test]
fn resets_go_through() {
    let passing = Passing::new(10, false);
    let (listener, place) = server();
    for from_client in [true, false] {
        let client = passing.client(place);
        let (inside, _) = listener.accept().unwrap();
        inside.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (gone, mut other) = if from_client { (client, inside) } else { (inside, client) };
        sockopt::set_socket_linger(&gone, Some(Duration::ZERO)).unwrap();
        drop(gone);
        assert_eq!(other.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{from_client}");
        passing.until(0);
    }
}

#[test]
fn the_second_place_is_tried_where_nobody_listens_at_the_first() {
    let passing = Passing::new(10, false);
    let (listener, place) = server();
    let first = match TcpListener::bind("[::1]:0") {
        Ok(v6) => v6.local_addr().unwrap(),
        Err(_) => nobody(),
    };
    let mut client = passing.try_client([Some(first), Some(place)]).unwrap();
    let (mut inside, peer) = listener.accept().unwrap();
    // Its port is the client's own.
    assert_eq!(peer.port(), client.local_addr().unwrap().port());
    inside.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    for places in [[Some(nobody()), None], [Some(nobody()), Some(nobody())]] {
        let mut client = passing.try_client(places).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    // The client has the port that is published: nothing is to be connected with itself.
    let own = passing.listener.local_addr().unwrap();
    let mut client = TcpStream::connect(own).unwrap();
    let (accepted, peer) = passing.listener.accept().unwrap();
    accepted.set_nonblocking(true).unwrap();
    let place = SocketAddr::new([127, 0, 0, 2].into(), peer.port());
    assert!(passing.open(accepted.into(), peer, [Some(place), None]));
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_there_is_no_room_for_is_given_back() {
    let passing = Passing::new(2, false);
    let (listener, place) = server();
    let first = passing.client(place);
    let second = passing.client(place);
    assert!(passing.try_client([Some(place), None]).is_none());
    // Nor what no way leads to.
    drop(first);
    drop(listener.accept().unwrap());
    passing.until(1);
    assert!(passing.try_client([Some("255.255.255.255:1".parse().unwrap()), None]).is_none());
    assert!(passing.try_client([None, None]).is_none());
    let mut third = passing.client(place);
    drop(listener.accept().unwrap());
    let (mut inside, _) = listener.accept().unwrap();
    inside.write_all(b"x").unwrap();
    third.read_exact(&mut [0]).unwrap();
    drop(second);
}

/// More connections than there are pipes, none of which is read from for a long time.
#[test]
fn slow_readers_hinder_nobody_and_lose_nothing() {
    const SLOW: usize = 50;
    let passing = Passing::new(100, true);
    let (listener, place) = server();
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let client = passing.client(place);
        client.set_nonblocking(true).unwrap();
        let (inside, _) = listener.accept().unwrap();
        // So that all is soon full.
        sockopt::set_socket_send_buffer_size(&client, 32 << 10).unwrap();
        slow.push((client, inside, 0));
    }
    let piece = vec![7; 64 << 10];
    // A socket that takes nothing is as full as it gets: at some point all of them are.
    for _ in 0..100 {
        for (client, _, sent) in &mut slow {
            while let Ok(n) = client.write(&piece) {
                *sent += n;
            }
        }
    }
    // Others have their turn.
    let mut client = passing.client(place);
    let (mut inside, _) = listener.accept().unwrap();
    for word in [b"a", b"b"] {
        client.write_all(word).unwrap();
        inside.read_exact(&mut [0]).unwrap();
        inside.write_all(word).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    for (client, mut inside, sent) in slow {
        drop(client);
        let mut heard = Vec::new();
        inside.read_to_end(&mut heard).unwrap();
        assert_eq!((heard.len(), sent > 0), (sent, true));
    }
}

#[test]
fn what_a_container_says_last_arrives_when_it_ends() {
    let mut passing = Passing::new(10, false);
    let (listener, place) = server();
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            let client = passing.client(place);
            (client, listener.accept().unwrap().0)
        })
        .collect();
    let (mut whole, mut inside) = clients.remove(0);
    inside.write_all(b"all of it").unwrap();
    drop(inside);
    passing.end();
    let mut answer = String::new();
    whole.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "all of it");
    // Who was not told that this is all learns that it is not.
    for (mut client, _inside) in clients {
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
