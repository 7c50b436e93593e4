// Package sim runs whole clusters in one goroutine, from one seed: the real node,
// consensus, log, store and state machine of one to five members, on a simulated
// network, disk and clock, under clients and faults, with checkers that look on. All of
// it is in the package's tests.
//
// # How a run goes
//
// A world keeps a queue of events by virtual time (testing/synctest): a tick of a member,
// a turn of its loop, log writer or applier, the arrival of a message, a client's next
// request, a fault. One goroutine takes the next event, lets it happen, waits until all
// that it set off has settled (synctest.Wait), and has the checkers look. Whatever is
// left to chance is drawn from the seed: by the world, by the network and disk as a
// function of seed and time, and by Raft from crypto/rand, which testing/cryptotest
// seeds. So a run with the same seed takes the same course, and a failure prints its
// seed.
//
// # What is simulated
//
//   - The network loses, delays, reorders and duplicates messages, cuts members off in both
//     directions or one, and tells members of lost messages, connections and ended
//     processes as package peer does. Snapshots are sent through it.
//
//   - The log's disk is a vfs.Mem: syncs are slow, hang or fail, it is full for a while, and
//     a crash loses or tears what was not synced. The store's B+tree is a real file, which a crash leaves as its last
//     commit did.
//
//   - Members pause, crash, stop in order, and start again; their clocks tick unevenly, and
//     their appliers lag.
//
//   - In some runs the quota is reached.
//
//   - Clients put, get, delete, compare and swap, grant, renew and revoke leases, compact,
//     and watch, each through one member at a time.
//
//   - Members are added as learners and voters, promoted and removed, themselves too; they
//     start with nothing, once their addition is committed.
//
//   - In some runs one member takes proposals as an etcd that leads does: it minds their
//     term, and not their numbers.
//
// # What is checked
//
//   - There is one leader a term, and what is committed stays so on every member.
//   - Logs match: an entry of the same index and term has the same content and predecessor.
//   - Members that have applied the same entry have the same state.
//   - The history of every key is linearizable (porcupine), and revisions follow real time.
//   - A request is applied once at most, and once if it was acknowledged.
//   - A request fails only for a reason: its member crashed, received a snapshot, has a full
//     disk or has reached its quota, or the request's time was over.
//   - A change of the membership that was acknowledged is committed; members that were
//     removed stop, and no others do.
//   - Watchers see each event of their keys once, in order, and all of them in the end, and
//     are not told of progress beyond what they have seen.
//   - No lease ends before the time that its client was told.
//   - When the faults are over the cluster serves again, and all members become equal.
//
// Each checker is shown to fail by a planted fault (planted_test.go).
package sim
