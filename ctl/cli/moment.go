package cli

import (
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

var momentLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02"}

// Moment parses a time as docker does: a duration ago, seconds since 1970, or a date.
func Moment(env *Env, flag, v string) (*timestamppb.Timestamp, error) {
	if v == "" {
		return nil, nil //nolint:nilnil // no bound
	}
	if d, err := time.ParseDuration(v); err == nil {
		return timestamppb.New(env.Now().Add(-d)), nil
	}
	if t, ok := unixTime(v); ok {
		return timestamppb.New(t), nil
	}
	for _, l := range momentLayouts {
		if t, err := time.ParseInLocation(l, v, time.Local); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, Usagef("%s %q: no time; write 10m, 2026-01-02T15:04:05 or seconds since 1970", flag, v)
}

// unixTime parses seconds since 1970, with up to nine digits behind the point.
func unixTime(v string) (time.Time, bool) {
	whole, part, _ := strings.Cut(v, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || seconds < 0 || seconds > 1<<37 || len(part) > 9 {
		return time.Time{}, false
	}
	nanos, err := strconv.ParseUint((part + "000000000")[:9], 10, 32)
	return time.Unix(seconds, int64(nanos)), err == nil
}
