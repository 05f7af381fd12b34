"""``/metrics``."""


def test_metrics_are_prometheus_text(fake, ask):
    fake.service.metrics = lambda: b"greenroom_num_requests_running 0\n"
    response = ask("GET", "/metrics")
    assert response.content == b"greenroom_num_requests_running 0\n"
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
