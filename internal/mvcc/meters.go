package mvcc

import "time"

// Meters are told, by the flusher, what it does and how long that took. Each may be nil.
type Meters struct {
	// Commit is one transaction of the file, and the parts of it that bbolt measures.
	Commit func(took, rebalance, spill, write time.Duration)
	// Dropped is a transaction that removed records, a step of a compaction, and IndexStep
	// how long such a step then kept the applier from the index.
	Dropped   func(records int, took time.Duration)
	IndexStep func(took time.Duration)
	// Compacted is a compaction from its request to its end.
	Compacted func(took time.Duration)
}

func (m *Meters) committed(w *write, took time.Duration) {
	if m.Commit != nil {
		m.Commit(took, w.stats.GetRebalanceTime(), w.stats.GetSpillTime(), w.stats.GetWriteTime())
	}
	if w.compact && m.Dropped != nil {
		m.Dropped(len(w.drops), took)
	}
}

func (m *Meters) indexStep(took time.Duration) {
	if m.IndexStep != nil {
		m.IndexStep(took)
	}
}

func (m *Meters) compacted(took time.Duration) {
	if m.Compacted != nil {
		m.Compacted(took)
	}
}
