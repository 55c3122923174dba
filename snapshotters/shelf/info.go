package shelf

import (
	"context"
	"fmt"
	"iter"
	"maps"

	"github.com/gantryd/gantry/snapshotters"
)

// Stat describes a snapshot as the contract wants it, counted.
func (s *Shelf) Stat(ctx context.Context, key string) (snapshotters.Info, error) {
	if err := snapshotters.CheckKey(key); err != nil {
		return snapshotters.Info{}, err
	}
	sn, u, err := s.Count(ctx, key)
	if err != nil {
		return snapshotters.Info{}, err
	}
	i := sn.info()
	i.Bytes, i.Inodes = u.Bytes, u.Inodes
	return i, nil
}

// Infos describes every snapshot, with the usage of those that are counted.
func (s *Shelf) Infos(ctx context.Context) iter.Seq2[snapshotters.Info, error] {
	return func(yield func(snapshotters.Info, error) bool) {
		for sn := range s.All() {
			if ctx.Err() != nil {
				yield(snapshotters.Info{}, fmt.Errorf("list snapshots: %w", Ended(ctx)))
				return
			}
			if !yield(sn.info(), nil) {
				return
			}
		}
	}
}

func (sn Snapshot) info() snapshotters.Info {
	i := snapshotters.Info{
		Key: sn.Key, Parent: sn.Parent, Committed: sn.Kind == Committed, ReadOnly: sn.Kind == View,
		Bytes: -1, Inodes: -1, Labels: maps.Clone(sn.Labels),
	}
	if sn.Usage != nil {
		i.Bytes, i.Inodes = sn.Usage.Bytes, sn.Usage.Inodes
	}
	return i
}
