// Package watch sends every change to the watchers that asked for it: from any revision
// on, in order, without a gap or a repeat, however slow they read.
package watch
