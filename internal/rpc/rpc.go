// Package rpc is the wire to clients: etcd's gRPC services, one file each, the JSON
// gateway and health. It is the only user of gRPC on the server's side; the services
// themselves know only the small Backend interface, so that a leaner transport can take
// gRPC's place.
package rpc

// Frame is a message already in wire form, in parts that are sent one after the other.
// The server's codec passes it through; SendMsg(Frame) and a handler that returns a
// Frame therefore cost no encoding.
type Frame [][]byte
