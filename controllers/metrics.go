package controllers

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// collectTimeout is how long a collection waits for the cache, which answers from memory once it is there.
const collectTimeout = 5 * time.Second

// collector tells of all MasterKeys and DataKeyRequests what their status says, whenever it is asked. Every replica tells the same.
type collector struct {
	client client.Reader // reads from the cache
}

var (
	ofKey    = []string{"namespace", "master_key"}
	keyState = prometheus.NewDesc("datakeys_master_key_state",
		"1 for the state of a MasterKey: Enabled, Disabled, PendingDeletion or Destroyed.", append(ofKey[:2:2], "state"), nil)
	keyReady = prometheus.NewDesc("datakeys_master_key_ready",
		"1 for a MasterKey that is Ready, else 0, with the reason of the condition.", append(ofKey[:2:2], "reason"), nil)
	keyPrimary = prometheus.NewDesc("datakeys_master_key_primary_version",
		"The primary version of a MasterKey.", ofKey, nil)
	keyDataKeys = prometheus.NewDesc("datakeys_master_key_data_keys",
		"The number of DataKeyRequests with a generation that a version of a MasterKey wraps, for its newest 20 versions.", append(ofKey[:2:2], "version"), nil)
	keyBehind = prometheus.NewDesc("datakeys_master_key_data_keys_behind",
		"The number of DataKeyRequests with a generation that an older than the primary version of a MasterKey wraps.", ofKey, nil)
	keyLastRotation = prometheus.NewDesc("datakeys_master_key_last_rotation_timestamp_seconds",
		"When the primary version of a MasterKey became so, in Unix time.", ofKey, nil)
	keyNextRotation = prometheus.NewDesc("datakeys_master_key_next_rotation_timestamp_seconds",
		"When a MasterKey is to be rotated by time, in Unix time; not there where it is not.", ofKey, nil)
	keyDeletion = prometheus.NewDesc("datakeys_master_key_deletion_timestamp_seconds",
		"When the material of a MasterKey is to be destroyed, in Unix time; not there where it is not.", ofKey, nil)
	requestsByReason = prometheus.NewDesc("datakeys_data_key_requests",
		"The number of DataKeyRequests of a namespace, by the reason of their Ready condition.", []string{"namespace", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		keyState, keyReady, keyPrimary, keyDataKeys, keyBehind, keyLastRotation, keyNextRotation, keyDeletion, requestsByReason,
	} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout) //nolint:forbidigo // a Collector is given none
	defer cancel()
	var keys v1alpha1.MasterKeyList
	if err := c.client.List(ctx, &keys, client.UnsafeDisableDeepCopy); err != nil {
		metrics <- prometheus.NewInvalidMetric(keyState, err)
		return
	}
	for i := range keys.Items {
		collectKey(&keys.Items[i], metrics)
	}
	var requests v1alpha1.DataKeyRequestList
	if err := c.client.List(ctx, &requests, client.UnsafeDisableDeepCopy); err != nil {
		metrics <- prometheus.NewInvalidMetric(requestsByReason, err)
		return
	}
	counts := map[[2]string]int{}
	for i := range requests.Items {
		request := &requests.Items[i]
		reason := "" // nobody has looked at it yet
		if ready := readyOf(request.Status.Conditions); ready != nil {
			reason = ready.Reason
		}
		counts[[2]string{request.Namespace, reason}]++
	}
	for of, n := range counts {
		metrics <- prometheus.MustNewConstMetric(requestsByReason, prometheus.GaugeValue, float64(n), of[0], of[1])
	}
}

func collectKey(key *v1alpha1.MasterKey, metrics chan<- prometheus.Metric) {
	tell := func(desc *prometheus.Desc, value float64, more ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{key.Namespace, key.Name}, more...)...)
	}
	moment := func(desc *prometheus.Desc, t metav1.Time) {
		if !t.IsZero() {
			tell(desc, float64(t.Unix()))
		}
	}
	status := &key.Status
	if status.State != "" {
		tell(keyState, 1, string(status.State))
	}
	if ready := readyOf(status.Conditions); ready != nil {
		value := 0.0
		if ready.Status == metav1.ConditionTrue {
			value = 1
		}
		tell(keyReady, value, ready.Reason)
	}
	if status.PrimaryVersion != nil {
		tell(keyPrimary, float64(*status.PrimaryVersion))
	}
	for _, version := range status.Versions {
		if version.DataKeys != nil {
			tell(keyDataKeys, float64(*version.DataKeys), strconv.FormatInt(int64(version.Version), 10))
		}
	}
	if status.DataKeysBehind != nil {
		tell(keyBehind, float64(*status.DataKeysBehind))
	}
	moment(keyLastRotation, status.LastRotationTime)
	moment(keyNextRotation, status.NextRotationTime)
	moment(keyDeletion, status.DeletionTime)
}
