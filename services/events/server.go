package events

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
)

// Register offers s on r. Errors get their codes from the interceptors of internal/rpc.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	eventsv1.RegisterEventsServiceServer(r, &server{s: s})
}

type server struct {
	eventsv1.UnimplementedEventsServiceServer
	s *Service
}

// Watch sends its header as soon as it will miss nothing, which is what a client waits for that is
// about to change something.
func (v *server) Watch(r *eventsv1.WatchRequest, stream grpc.ServerStreamingServer[eventsv1.WatchResponse]) error {
	q := Query{After: r.GetAfter(), FromStart: r.GetFromStart(), NoFollow: r.GetNoFollow(), Filters: r.GetFilters()}
	if r.GetSince() != nil {
		q.Since = r.GetSince().AsTime()
	}
	if r.GetUntil() != nil {
		q.Until = r.GetUntil().AsTime()
	}
	ready := func() error { return stream.SendHeader(metadata.MD{}) }
	for e, err := range v.s.Watch(stream.Context(), q, ready) {
		if err != nil {
			return err
		}
		if err := stream.Send(&eventsv1.WatchResponse{Event: e}); err != nil {
			return err
		}
	}
	return nil
}
