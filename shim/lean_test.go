package main

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// TestLean: what generated code writes package proto reads, and the other way round, empty or not.
func TestLean(t *testing.T) {
	for _, m := range []proto.Message{
		&shimv1.StateResponse{}, &shimv1.ExecRequest{Process: "p", Spec: []byte("{}"), OpenStdin: true},
		&shimv1.StateResponse{Change: 7, Phase: shimv1.Phase_PHASE_RUNNING, Pid: 42, StartedAt: timestamppb.Now(), Exit: &typesv1.Exit{Code: 3, At: timestamppb.Now()}},
		&shimv1.HelloResponse{Protocol: 1, Nonce: "é", Capabilities: []string{"a", "b"}},
	} {
		usual, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := proto.Marshal(lean{m: m.(fast)})
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range [][]byte{usual, ours} {
			byUsual, byOurs := m.ProtoReflect().New().Interface(), m.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(raw, byUsual); err != nil || !proto.Equal(byUsual, m) {
				t.Errorf("package proto reads %v, %v; want %v", byUsual, err, m)
			}
			if err := proto.Unmarshal(raw, lean{m: byOurs.(fast)}); err != nil || !proto.Equal(byOurs, m) {
				t.Errorf("generated code reads %v, %v; want %v", byOurs, err, m)
			}
		}
		if proto.Size(lean{m: m.(fast)}) != len(usual) {
			t.Errorf("%d bytes, want %d", proto.Size(lean{m: m.(fast)}), len(usual))
		}
	}
	if err := proto.Unmarshal([]byte{0xff, 0xff}, lean{m: &shimv1.ExecRequest{}}); err == nil {
		t.Error("rubbish is read")
	}
}
