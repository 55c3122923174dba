package host

import (
	"context"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
)

// stdioMethod is go-plugin's own: its servers keep what is printed in a pipe until somebody fetches it here, and whoever
// prints more than the pipe holds hangs. plugins/serve ends that with the first call; plugins that use go-plugin
// without it do not.
const stdioMethod = "/plugin.GRPCStdio/StreamStdio"

// drain writes to p's log what go-plugin keeps for us, until the connection is closed.
func (p *process) drain(ctx context.Context) {
	s, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, stdioMethod)
	if err == nil {
		err = s.SendMsg(&emptypb.Empty{})
	}
	if err == nil {
		err = s.CloseSend()
	}
	if err != nil {
		return // a server that is not go-plugin's keeps nothing
	}
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer func() { _ = log.Close() }()
	for {
		m := &emptypb.Empty{} // its fields are of a package that is internal to go-plugin: they come as unknown ones
		if s.RecvMsg(m) != nil {
			return
		}
		if _, err := log.Write(printed(m.ProtoReflect().GetUnknown())); err != nil {
			return
		}
	}
}

// printed finds the text in go-plugin's StdioData, whose second field it is.
func printed(raw []byte) (out []byte) {
	for len(raw) > 0 {
		field, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return out
		}
		raw = raw[n:]
		if field == 2 && kind == protowire.BytesType {
			text, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				return out
			}
			out, raw = append(out, text...), raw[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(field, kind, raw); n < 0 {
			return out
		}
		raw = raw[n:]
	}
	return out
}
