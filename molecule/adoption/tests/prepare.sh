set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
apt-get install -y -qq redis-server rabbitmq-server >/dev/null 2>&1
systemctl stop redis-server rabbitmq-server
mkdir -p /srv/redis /srv/rabbitmq
chown redis:redis /srv/redis
chown rabbitmq:rabbitmq /srv/rabbitmq
sed -i 's#^dir .*#dir /srv/redis#; s/^appendonly no/appendonly yes/' /etc/redis/redis.conf
echo 'requirepass of-the-others' >>/etc/redis/redis.conf
mkdir -p /etc/systemd/system/redis-server.service.d
printf '[Service]\nReadWritePaths=/srv/redis\n' >/etc/systemd/system/redis-server.service.d/override.conf
printf 'RABBITMQ_MNESIA_BASE=/srv/rabbitmq\nNODENAME=rabbit@localhost\n' >/etc/rabbitmq/rabbitmq-env.conf
systemctl daemon-reload
systemctl start redis-server rabbitmq-server
export REDISCLI_AUTH=of-the-others
redis-cli LPUSH celery task-1 task-2 task-3
redis-cli ACL SETUSER reports on '>of-the-reports' '~*' +@read
rabbitmqctl -q await_startup
rabbitmqctl -q add_vhost celery
rabbitmqctl -q add_user app of-the-application
rabbitmqctl -q set_permissions -p celery app '.*' '.*' '.*'
rabbitmqctl -q add_user legacyapp of-the-other-team
rabbitmqctl -q eval 'rabbit_amqqueue:declare({resource,<<"celery">>,queue,<<"precious">>}, true, false, [], none, <<"x">>), ok.'
