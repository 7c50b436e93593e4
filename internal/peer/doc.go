// Package peer is the wire between members: etcd's peer protocol, both sides. Members of
// quorate and of etcd 3.7 talk by it in any mixture. docs/formats/peer.md describes it.
//
// # What it promises
//
// Send never blocks, and no peer holds up another. What a peer cannot take in time is
// dropped, as Raft allows, within bounds by count and by bytes, and Handler.Lost tells
// it. Messages on one stream arrive in their order or not at all, except that what
// carries no entries overtakes what does.
//
// A connection that breaks is made again with back-off, from a millisecond up to half a
// second, and at once when the other member shows up. One that says nothing for a second is
// replaced if a new one works, so that a link is used again soon after it was away. When the process behind a connection has
// died, Handler.Gone says so about a millisecond later: the kernel closes what the process
// had open, so its streams end and its port refuses. A stream that merely breaks, a
// machine that falls silent and a process that stands still are none of that.
//
// # How the pieces meet
//
//	Send ─▶ remote ─▶ outbox of a stream ─▶ its writer ─────────▶ other member's decoder ─▶ Receive
//	              └─▶ pipeline (while no stream stands) ─▶ POST /raft ─────────────────────▶ Receive
//	SendSnapshot ─▶ POST /raft/snapshot ─────────────────────────────────────▶ ReceiveSnapshot
//
// Streams are dialed by who reads them. Each remote has therefore two goroutines that dial
// and read (readers), and for each stream that the other member has dialed a writer, which
// is the goroutine of its HTTP request, and a sentinel that sees the connection end. A
// Transport ends them all in Close.
package peer
