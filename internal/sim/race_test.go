//go:build race

package sim

// raced: the race detector looks on, and a seed takes several times as long.
const raced = true
