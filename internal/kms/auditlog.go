package kms

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// JSONAuditor writes one line of JSON a record, each by one Write.
type JSONAuditor struct {
	w    io.Writer
	turn chan struct{} // holds one token; a channel and no mutex, so that waiting behind a slow writer can be given up
	// What follows needs the turn.
	line []byte
	torn bool // a line was begun and not ended
}

// NewJSONAuditor returns an auditor that writes to w. It does not close it.
func NewJSONAuditor(w io.Writer) *JSONAuditor {
	return &JSONAuditor{w: w, turn: make(chan struct{}, 1)}
}

// Record implements Auditor.
func (a *JSONAuditor) Record(ctx context.Context, r AuditRecord) (err error) {
	select {
	case a.turn <- struct{}{}: // nobody else writes: a context makes its channel only when it is asked for
	default:
		select {
		case a.turn <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("waiting to write an audit record: %w", ctx.Err())
		}
	}
	defer func() { <-a.turn }()
	a.line = a.line[:0]
	if a.torn {
		a.line = append(a.line, '\n')
	}
	if a.line, err = r.appendJSON(a.line); err != nil {
		return fmt.Errorf("encoding an audit record: %w", err)
	}
	a.line = append(a.line, '\n')
	n, err := a.w.Write(a.line)
	if err == nil && n < len(a.line) {
		err = io.ErrShortWrite
	}
	if err != nil {
		a.torn = a.torn || n > 0
		return fmt.Errorf("writing an audit record: %w", err)
	}
	a.torn = false
	return nil
}

var _ Auditor = (*JSONAuditor)(nil)

// appendJSON appends what json.Marshal would return: encoding/json takes five times as long, and every call waits for it.
func (r *AuditRecord) appendJSON(b []byte) ([]byte, error) {
	b = append(b, `{"time":"`...)
	b, err := r.Time.AppendText(b)
	if err != nil {
		return nil, err
	}
	b = appendField(append(b, '"'), "operation", r.Operation)
	b = appendField(b, "decision", r.Decision)
	b = appendSet(b, "code", r.Code)
	b = appendSet(b, "reason", r.Reason)
	if c := r.Caller; c != nil {
		b = append(b, `,"caller":{`...)
		b = appendField(b, "username", c.Username)
		b = appendField(b, "namespace", c.Namespace)
		b = appendField(b, "serviceAccount", c.ServiceAccount)
		b = appendField(b, "pod", c.Pod)
		b = appendField(b, "podUID", c.PodUID)
		b = append(appendSet(b, "node", c.Node), '}')
	}
	b = appendSet(b, "door", r.Door)
	if r.DryRun {
		b = append(b, `,"dryRun":true`...)
	}
	b = appendAuditKey(b, "key", r.Key)
	b = appendAuditKey(b, "sourceKey", r.SourceKey)
	if d := r.DataKey; d != nil {
		b = append(b, `,"dataKey":{`...)
		b = appendField(b, "namespace", d.Namespace)
		b = appendField(b, "name", d.Name)
		if d.Generation != 0 {
			b = strconv.AppendUint(append(b, `,"generation":`...), uint64(d.Generation), 10)
		}
		b = append(b, '}')
	}
	if r.Bytes != 0 {
		b = strconv.AppendInt(append(b, `,"bytes":`...), int64(r.Bytes), 10)
	}
	b = appendSet(b, "rootKey", r.RootKey)
	if r.SealingKey != 0 {
		b = strconv.AppendUint(append(b, `,"sealingKey":`...), uint64(r.SealingKey), 10)
	}
	return append(b, '}'), nil
}

func appendAuditKey(b []byte, name string, k *AuditKey) []byte {
	if k == nil {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":{`...)
	b = appendSet(b, "id", k.ID)
	b = appendSet(b, "namespace", k.Namespace)
	b = appendSet(b, "name", k.Name)
	if k.Version != 0 {
		b = strconv.AppendUint(append(appendName(b, "version"), ':'), uint64(k.Version), 10)
	}
	return append(b, '}')
}

// appendSet appends a field unless it is empty.
func appendSet(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendField(b, name, value)
}

func appendField(b []byte, name, value string) []byte {
	return appendString(append(appendName(b, name), ':'), value)
}

func appendName(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	return append(append(append(b, '"'), name...), '"')
}

// escaped is s as encoding/json writes it.
func escaped(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil { // which encoding/json never gives for a string
		return []byte(`""`)
	}
	return b
}

// appendString appends a string of printable ASCII as it is, and any other as encoding/json escapes it.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return append(b, escaped(s)...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
