package main

import (
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"
)

// fast is a message whose reader and writer are generated (vtprotobuf). All of the contract's are.
type fast interface {
	SizeVT() int
	MarshalToSizedBufferVT(b []byte) (int, error)
	UnmarshalVT(b []byte) error
	Reset()
}

// lean is such a message to ttrpc, which reads and writes what package proto can. Package proto asks a
// message for methods of its own before it learns, from the descriptors, how to do it by reflection: 150 KB
// that every shim would keep. Nobody asks it for anything else: the rest of the interface is not there.
type lean struct {
	protoreflect.Message
	m fast
}

// ProtoReflect makes it a proto.Message.
func (l lean) ProtoReflect() protoreflect.Message { return l }

// Interface is the way back.
func (l lean) Interface() protoreflect.ProtoMessage { return l }

// IsValid: it is a message, not a nil.
func (l lean) IsValid() bool { return true }

// Reset empties it before it is read.
func (l lean) Reset() { l.m.Reset() }

// ProtoMethods are what package proto uses.
func (l lean) ProtoMethods() *protoiface.Methods { return &leanMethods }

var leanMethods = protoiface.Methods{
	Size: func(in protoiface.SizeInput) protoiface.SizeOutput {
		return protoiface.SizeOutput{Size: leanOf(in.Message).SizeVT()}
	},
	Marshal: func(in protoiface.MarshalInput) (out protoiface.MarshalOutput, err error) {
		m := leanOf(in.Message)
		b := make([]byte, m.SizeVT())
		if _, err = m.MarshalToSizedBufferVT(b); err == nil {
			out.Buf = append(in.Buf, b...)
		}
		return out, err
	},
	Unmarshal: func(in protoiface.UnmarshalInput) (protoiface.UnmarshalOutput, error) {
		return protoiface.UnmarshalOutput{Flags: protoiface.UnmarshalInitialized}, leanOf(in.Message).UnmarshalVT(in.Buf)
	},
	CheckInitialized: func(protoiface.CheckInitializedInput) (protoiface.CheckInitializedOutput, error) {
		return protoiface.CheckInitializedOutput{}, nil // no field is required in proto3
	},
}

func leanOf(m protoreflect.Message) fast { return m.(lean).m } //nolint:forcetypeassert // only lean has these methods
