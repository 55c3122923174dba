package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// DialOptions are the interceptors of a client: its errors have their classes again.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(clientUnary), grpc.WithChainStreamInterceptor(clientStream)}
}

func clientUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return FromStatus(invoke(ctx, method, req, reply, cc, opts...))
}

func clientStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, FromStatus(err)
	}
	return native{s}, nil
}

// native is a stream whose errors have their classes again. io.EOF has no status and stays.
type native struct{ grpc.ClientStream }

func (n native) Header() (metadata.MD, error) {
	md, err := n.ClientStream.Header()
	return md, FromStatus(err)
}
func (n native) CloseSend() error    { return FromStatus(n.ClientStream.CloseSend()) }
func (n native) SendMsg(m any) error { return FromStatus(n.ClientStream.SendMsg(m)) }
func (n native) RecvMsg(m any) error { return FromStatus(n.ClientStream.RecvMsg(m)) }
