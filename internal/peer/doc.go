// Package peer is the wire between members: etcd's peer protocol, both sides.
package peer
